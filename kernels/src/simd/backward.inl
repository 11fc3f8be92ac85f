// The gradients of one task. Included inside the namespace of its instruction set, after forward.inl.
//
// For each direction: walk forwards and keep the states at the start of every chunk; then take the chunks from the last
// to the first, recompute the states inside from the checkpoint, and walk backwards:
//
//   G_s = dy_s C_s + exp(dt_{s+1} A) G_{s+1}                 the gradient of h_s
//   dC_s = dy_s h_s          dB_s = G_s dt_s u_s             each summed over the channels
//   dA += G_s dt_s exp(dt_s A) h_{s-1}
//   ddt_s = sum_n G_s (A exp(dt_s A) h_{s-1} + B_s u_s)      then through softplus to delta and delta_bias
//   du_s = D dy_s + dt_s sum_n G_s B_s
//
// Memory: the checkpoints, (S / kChunk) * N * width floats; everything else is of the size of one chunk.

static inline int64_t chunks_of(const Problem& p) { return (p.steps + kChunk - 1) / kChunk; }

struct BackwardScratch {
  ForwardScratch forward;
  float* checkpoints;      // [chunks][blocks][N][lane]
  float *grad, *dA;        // [blocks][N][lane]: G of the step after; the direction's dA
  float *dB, *dC;          // [chunk][N][lane], summed over the blocks
  float *decays, *states;  // [chunk][N][lane] of one block; states one step longer, with h before the chunk first
  float *dy, *by_decay, *by_input;  // [chunk][lane] of one block: sum_n G A' exp() h and sum_n G B
  float *dD, *dbias;                // [blocks][lane]
  float* du;                        // [P][blocks][lane] where the directions share u, else null

  BackwardScratch(const Problem& p, int64_t width, Arena& arena) : forward(p, width, arena) {
    const int64_t lanes = forward.blocks * kWidth, of_chunk = kChunk * p.states * kWidth;
    checkpoints = arena.take(chunks_of(p) * lanes * p.states);
    grad = arena.take(lanes * p.states);
    dA = arena.take(lanes * p.states);
    dB = arena.take(of_chunk);
    dC = arena.take(of_chunk);
    decays = arena.take(of_chunk);
    states = arena.take(of_chunk + p.states * kWidth);
    dy = arena.take(kChunk * kWidth);
    by_decay = arena.take(kChunk * kWidth);
    by_input = arena.take(kChunk * kWidth);
    dD = arena.take(lanes);
    dbias = arena.take(lanes);
    du = p.u_directions == 1 ? arena.take(p.positions * lanes) : nullptr;
  }
};

static size_t backward_scratch(const Problem& p, int64_t width) {
  Arena arena(nullptr);
  const BackwardScratch unused(p, width, arena);
  (void)unused;
  return arena.used();
}

// d softplus / dx = 1 / (1 + e^-x), NaN for NaN.
static inline Vec sigmoid(Vec x) {
  const Vec e = value(exp2_any(abs(x), set(-kLog2E)));  // in [0, 1]
  const Vec small = e / (e + set(1.0f));         // sigmoid(-|x|)
  return select(not_below_or_equal(x, set(0.0f)), set(1.0f) - small, small);
}

// Fills `decays` and `states` for one block of a chunk, from the state before it.
template <Exponents kExponents>
static void replay(const BackwardScratch& m, int64_t block, int64_t states, const float* before, int64_t steps) {
  const ForwardScratch& f = m.forward;
  const float *a = f.a + block * states * kWidth, *dt = f.dt + block * f.stride, *x = f.x + block * f.stride;
  memcpy(m.states, before, static_cast<size_t>(states * kWidth) * sizeof(float));
  for (int64_t s = 0; s < steps; ++s) {
    const Vec t = load(dt + s * kWidth), input = load(x + s * kWidth);
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = (s * states + n) * kWidth;
      const Vec decay = value(exp2<kExponents>(t, load(a + n * kWidth)));
      store(m.decays + at, decay);
      store(m.states + at + states * kWidth, fma(decay, load(m.states + at), input * broadcast(f.B + s * states + n)));
    }
  }
}

// kStates states of one block, from n on, backwards over a chunk.
template <int kStates>
static void retreat(const BackwardScratch& m, int64_t block, int64_t n, int64_t states, int64_t steps) {
  const ForwardScratch& f = m.forward;
  const float *a = f.a + (block * states + n) * kWidth, *dt = f.dt + block * f.stride, *x = f.x + block * f.stride;
  float *grad = m.grad + (block * states + n) * kWidth, *dA = m.dA + (block * states + n) * kWidth;
  Vec g[kStates], da[kStates];
  for (int i = 0; i < kStates; ++i) {
    g[i] = load(grad + i * kWidth);
    da[i] = load(dA + i * kWidth);
  }
  for (int64_t s = steps - 1; s >= 0; --s) {
    const Vec dy = load(m.dy + s * kWidth), t = load(dt + s * kWidth), input = load(x + s * kWidth);
    Vec by_decay = load(m.by_decay + s * kWidth), by_input = load(m.by_input + s * kWidth);
    const float *B = f.B + s * states + n, *C = f.C + s * states + n;
    for (int i = 0; i < kStates; ++i) {
      const int64_t at = (s * states + n + i) * kWidth;
      const Vec decay = load(m.decays + at);
      store(m.dC + at, fma(dy, load(m.states + at + states * kWidth), load(m.dC + at)));
      g[i] = fma(dy, broadcast(C + i), g[i]);
      store(m.dB + at, fma(g[i], input, load(m.dB + at)));
      by_input = fma(g[i], broadcast(B + i), by_input);
      g[i] = g[i] * decay;
      const Vec inner = g[i] * load(m.states + at);
      by_decay = fma(inner, load(a + i * kWidth), by_decay);
      da[i] = fma(inner, t, da[i]);
    }
    store(m.by_decay + s * kWidth, by_decay);
    store(m.by_input + s * kWidth, by_input);
  }
  for (int i = 0; i < kStates; ++i) {
    store(grad + i * kWidth, g[i]);
    store(dA + i * kWidth, da[i]);
  }
}

// One direction of one task, on rows of T.
template <typename T>
class DirectionBackward {
 public:
  DirectionBackward(const BackwardTask& task, const BackwardScratch& scratch, int64_t direction)
      : task_(task), p_(*task.problem), m_(scratch), f_(scratch.forward), g_(direction) {}

  void run() {
    const int64_t lanes = f_.blocks * kWidth, weights = g_ * p_.channels + task_.first;
    const size_t lane_bytes = static_cast<size_t>(lanes) * sizeof(float);
    const size_t state_bytes = lane_bytes * static_cast<size_t>(p_.states);
    load_decay(p_, g_, task_.first, task_.width, f_.a, f_.small, f_.decaying);
    load_weights(p_.delta_bias, weights, f_.bias);
    load_weights(p_.D, weights, f_.skip);
    if (p_.steps < p_.positions) clear_unvisited();

    memset(f_.h, 0, state_bytes);
    for (int64_t chunk = 0; chunk < chunks_of(p_); ++chunk) {
      memcpy(m_.checkpoints + chunk * lanes * p_.states, f_.h, state_bytes);
      if (chunk + 1 == chunks_of(p_)) break;  // the walk back recomputes the last chunk anyway
      const bool all_small = read_chunk(chunk);
      advance_blocks(f_, p_.states, steps_of(chunk), all_small);
    }

    memset(m_.grad, 0, state_bytes);
    memset(m_.dA, 0, state_bytes);
    memset(m_.dD, 0, lane_bytes);
    memset(m_.dbias, 0, lane_bytes);
    for (int64_t chunk = chunks_of(p_) - 1; chunk >= 0; --chunk) walk_back(chunk);
    write_weights(weights);
  }

 private:
  const int32_t* order_of(int64_t chunk) const { return p_.order + g_ * p_.steps + chunk * kChunk; }
  int64_t steps_of(int64_t chunk) const {
    const int64_t left = p_.steps - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }
  int64_t row(int32_t position) const { return task_.batch * p_.positions + position; }
  int64_t delta_at(int32_t position) const { return (row(position) * p_.directions + g_) * p_.channels + task_.first; }
  int64_t u_at(int32_t position) const {
    return (row(position) * p_.u_directions + (m_.du ? 0 : g_)) * p_.channels + task_.first;
  }

  void load_weights(const void* source, int64_t at, float* out) const {
    memset(out, 0, static_cast<size_t>(f_.blocks * kWidth) * sizeof(float));
    memcpy(out, static_cast<const float*>(source) + at, static_cast<size_t>(task_.width) * sizeof(float));
  }

  // Positions that a partial order leaves out have no gradient through this direction.
  void clear_unvisited() const {
    T *delta = static_cast<T*>(task_.gradients->delta), *u = static_cast<T*>(task_.gradients->u);
    if (delta) clear_rows(delta + delta_at(0), p_.positions, task_.width, p_.directions * p_.channels);
    if (u && !m_.du) clear_rows(u + u_at(0), p_.positions, task_.width, p_.u_directions * p_.channels);
  }

  bool read_chunk(int64_t chunk) const {
    const int32_t* order = order_of(chunk);
    const int64_t steps = steps_of(chunk);
    load_states<T>(p_.B, p_, task_.batch, g_, order, steps, f_.B);
    load_states<T>(p_.C, p_, task_.batch, g_, order, steps, f_.C);
    const ForwardTask task{task_.problem, task_.batch, task_.first, task_.width, nullptr, nullptr};
    return p_.softplus ? load_steps<T, true>(task, f_, g_, order, steps)
                       : load_steps<T, false>(task, f_, g_, order, steps);
  }

  void walk_back(int64_t chunk) const {
    const int32_t* order = order_of(chunk);
    const int64_t steps = steps_of(chunk);
    const bool all_small = read_chunk(chunk);
    memset(m_.dB, 0, static_cast<size_t>(steps * p_.states * kWidth) * sizeof(float));
    memset(m_.dC, 0, static_cast<size_t>(steps * p_.states * kWidth) * sizeof(float));
    for (int64_t i = 0; i < f_.blocks; ++i) {
      const int64_t d = i * kWidth, left = task_.width - d;
      const float* before = m_.checkpoints + (chunk * f_.blocks + i) * kWidth * p_.states;
      switch (all_small ? Exponents::kSmall : exponents_of(f_, i, steps)) {
        case Exponents::kSmall: replay<Exponents::kSmall>(m_, i, p_.states, before, steps); break;
        case Exponents::kDecaying: replay<Exponents::kDecaying>(m_, i, p_.states, before, steps); break;
        case Exponents::kAny: replay<Exponents::kAny>(m_, i, p_.states, before, steps); break;
      }
      const T* dy = static_cast<const T*>(task_.dy) + task_.first + d;
      for (int64_t s = 0; s < steps; ++s) {
        store(m_.dy + s * kWidth, load_lanes(dy + row(order[s]) * p_.channels, left));
        store(m_.by_decay + s * kWidth, set(0.0f));
        store(m_.by_input + s * kWidth, set(0.0f));
      }
      int64_t n = 0;
      for (; n + 4 <= p_.states; n += 4) retreat<4>(m_, i, n, p_.states, steps);
      for (; n < p_.states; ++n) retreat<1>(m_, i, n, p_.states, steps);
      write_steps(i, order, steps);
    }
    const int64_t first = task_.batch * p_.positions;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t at = ((row(order[s]) - first) * p_.directions + g_) * p_.states;
      for (int64_t n = 0; n < p_.states; ++n) {
        task_.shares.dB[at + n] = sum(load(m_.dB + (s * p_.states + n) * kWidth));
        task_.shares.dC[at + n] = sum(load(m_.dC + (s * p_.states + n) * kWidth));
      }
    }
  }

  // ddelta and du of one block's chunk, and its part of dD and dbias.
  void write_steps(int64_t block, const int32_t* order, int64_t steps) const {
    const int64_t d = block * kWidth, left = task_.width - d;
    const Vec skip = load(f_.skip + d), bias = load(f_.bias + d);
    Vec dD = load(m_.dD + d), dbias = load(m_.dbias + d);
    for (int64_t s = 0; s < steps; ++s) {
      const Vec dy = load(m_.dy + s * kWidth), by_input = load(m_.by_input + s * kWidth);
      const Vec u = load_lanes(static_cast<const T*>(p_.u) + u_at(order[s]) + d, left);
      Vec ddelta = fma(u, by_input, load(m_.by_decay + s * kWidth) * set(kLn2));
      if (p_.softplus) {
        ddelta = ddelta * sigmoid(load_lanes(static_cast<const T*>(p_.delta) + delta_at(order[s]) + d, left) + bias);
      }
      const Vec du = fma(load(f_.dt + block * f_.stride + s * kWidth), by_input, skip * dy);
      dD = fma(dy, u, dD);
      dbias = dbias + ddelta;
      if (T* out = static_cast<T*>(task_.gradients->delta)) store_lanes(out + delta_at(order[s]) + d, ddelta, left);
      if (m_.du) {
        float* to = m_.du + (order[s] * f_.blocks + block) * kWidth;
        store(to, load(to) + du);
      } else if (T* out = static_cast<T*>(task_.gradients->u)) {
        store_lanes(out + u_at(order[s]) + d, du, left);
      }
    }
    store(m_.dD + d, dD);
    store(m_.dbias + d, dbias);
  }

  void write_weights(int64_t at) const {
    for (int64_t d = 0; d < task_.width; ++d) {
      const float* lane = m_.dA + d / kWidth * kWidth * p_.states + d % kWidth;
      for (int64_t n = 0; n < p_.states; ++n) task_.shares.dA[(at + d) * p_.states + n] = lane[n * kWidth];
    }
    memcpy(task_.shares.dD + at, m_.dD, static_cast<size_t>(task_.width) * sizeof(float));
    memcpy(task_.shares.dbias + at, m_.dbias, static_cast<size_t>(task_.width) * sizeof(float));
  }

  const BackwardTask& task_;
  const Problem& p_;
  const BackwardScratch& m_;
  const ForwardScratch& f_;
  const int64_t g_;
};

template <typename T>
static void backward_of(const BackwardTask& task) {
  const Problem& p = *task.problem;
  const FlushSubnormals flush;
  Arena arena(task.scratch);
  const BackwardScratch m(p, task.width, arena);
  const int64_t lanes = m.forward.blocks * kWidth;
  if (m.du) memset(m.du, 0, static_cast<size_t>(p.positions * lanes) * sizeof(float));
  for (int64_t g = 0; g < p.directions; ++g) DirectionBackward<T>(task, m, g).run();
  T* u = static_cast<T*>(task.gradients->u);
  if (m.du == nullptr || u == nullptr) return;
  for (int64_t i = 0; i < p.positions; ++i) {
    T* out = u + (task.batch * p.positions + i) * p.channels + task.first;
    for (int64_t d = 0; d < task.width; d += kWidth) store_lanes(out + d, load(m.du + i * lanes + d), task.width - d);
  }
}

static void backward(const BackwardTask& task) {
  switch (task.problem->dtype) {
    case EM_F16: return backward_of<Float16>(task);
    case EM_BF16: return backward_of<BFloat16>(task);
    default: return backward_of<float>(task);
  }
}
