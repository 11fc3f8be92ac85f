// The gradients of one task. Included inside the namespace of its instruction set, after forward.inl.
//
// For each direction: take the chunks from the last to the first, recompute the states inside from the checkpoint before
// it, and walk backwards. Where the forward call kept no checkpoints, a walk over all steps finds them first.
//
//   G_s = dy_s C_s + exp(dt_{s+1} A) G_{s+1}                 the gradient of h_s
//   dC_s = dy_s h_s          dB_s = G_s dt_s u_s             each summed over the channels
//   dA += G_s dt_s exp(dt_s A) h_{s-1}
//   ddt_s = sum_n G_s (A exp(dt_s A) h_{s-1} + B_s u_s)      then through softplus to delta and delta_bias
//   du_s = D dy_s + dt_s sum_n G_s B_s
//
// Memory: the checkpoints, (S / kChunk) * N * width floats, where they were not kept; P * width where the directions share
// u; everything else is of the size of one chunk.

// States that are taken together, in registers: of a chunk of one block they fill half a first-level cache.
constexpr int kGroup = 4;

// Floats between arrays that are walked side by side, whose size is a multiple of 4 KiB without: a load whose address
// agrees with an earlier store's in its last twelve bits waits for it.
constexpr int64_t kApart = 256;

struct BackwardScratch {
  ForwardScratch forward;
  float* checkpoints;               // [chunks][blocks][N][lane], or of the one chunk that is at hand
  float *grad, *dA;                 // [blocks][N][lane]: G of the step after; the direction's dA
  float *dB, *dC;                   // [chunk][group][lane], summed over the blocks
  float *decays, *states;           // [chunk][group][lane] of one block; states: of h before each step
  float *dy, *by_decay, *by_input;  // [blocks][chunk][lane], `stride` apart: sum_n G A' exp() h and sum_n G B
  float *dD, *dbias;                // [blocks][lane]
  float* du;                        // [P][blocks][lane] where the directions share u, else null

  BackwardScratch(const Problem& p, int64_t width, bool checkpointed, Arena& arena)
      : forward(p, width, false, arena) {
    const int64_t lanes = forward.blocks * kWidth, of_group = kChunk * kGroup * kWidth + kApart;
    checkpoints = arena.take((checkpointed ? 1 : chunks_of(p)) * lanes * p.states);
    grad = arena.take(lanes * p.states);
    dA = arena.take(lanes * p.states);
    dB = arena.take(of_group);
    dC = arena.take(of_group);
    decays = arena.take(of_group);
    states = arena.take(of_group);
    dy = arena.take(forward.blocks * forward.stride);
    by_decay = arena.take(forward.blocks * forward.stride);
    by_input = arena.take(forward.blocks * forward.stride);
    dD = arena.take(lanes);
    dbias = arena.take(lanes);
    du = p.u_directions == 1 ? arena.take(p.positions * lanes) : nullptr;
  }
};

static size_t backward_scratch(const Problem& p, int64_t width, bool checkpointed) {
  Arena arena(nullptr);
  const BackwardScratch unused(p, width, checkpointed, arena);
  (void)unused;
  return arena.used();
}

// d softplus / dx = 1 / (1 + e^-x), NaN for NaN.
static inline Vec sigmoid(Vec x) {
  const Vec e = value(exp2_any(abs(x), set(-kLog2E)));  // in [0, 1]
  const Vec small = e / (e + set(1.0f));         // sigmoid(-|x|)
  return select(not_below_or_equal(x, set(0.0f)), set(1.0f) - small, small);
}

// kStates states of one block, from n on, forwards over a chunk from the checkpoint `before` it: fills `decays` and
// `states`, and returns the states after the chunk in `h`.
template <int kStates, Exponents kExponents>
EM_INLINE void replay(const BackwardScratch& m, int64_t block, int64_t n, int64_t states, const float* before,
                      int64_t steps, Vec* h) {
  const ForwardScratch& f = m.forward;
  const float *a = f.a + (block * states + n) * kWidth, *dt = f.dt + block * f.stride, *x = f.x + block * f.stride;
  const float* B = f.B + n;
  float *decays = m.decays, *kept = m.states;
  for (int i = 0; i < kStates; ++i) h[i] = load(before + (n + i) * kWidth);
  for (int64_t s = 0; s < steps; ++s, B += states, decays += kStates * kWidth, kept += kStates * kWidth) {
    const Vec t = load(dt + s * kWidth), input = load(x + s * kWidth);
    for (int i = 0; i < kStates; ++i) {
      const Vec decay = value(exp2<kExponents>(t, load(a + i * kWidth)));
      store(decays + i * kWidth, decay);
      store(kept + i * kWidth, h[i]);
      h[i] = fma(decay, h[i], input * broadcast(B + i));
    }
  }
}

// The same states backwards; `h` are those after the chunk. The first block starts dB and dC, the others add to them.
template <int kStates, bool kFirst>
EM_INLINE void retreat(const BackwardScratch& m, int64_t block, int64_t n, int64_t states, int64_t steps, Vec* h) {
  const ForwardScratch& f = m.forward;
  const int64_t weights = (block * states + n) * kWidth, rows = block * f.stride;
  Vec g[kStates], dA[kStates];
  for (int i = 0; i < kStates; ++i) {
    g[i] = load(m.grad + weights + i * kWidth);
    dA[i] = load(m.dA + weights + i * kWidth);
  }
  for (int64_t s = steps - 1; s >= 0; --s) {
    const int64_t row = rows + s * kWidth;
    const Vec dy = load(m.dy + row), t = load(f.dt + row), input = load(f.x + row);
    Vec by_decay = load(m.by_decay + row), by_input = load(m.by_input + row);
    const float *B = f.B + s * states + n, *C = f.C + s * states + n;
    for (int i = 0; i < kStates; ++i) {
      const int64_t at = (s * kStates + i) * kWidth;
      const Vec decay = load(m.decays + at);
      store(m.dC + at, kFirst ? dy * h[i] : fma(dy, h[i], load(m.dC + at)));
      h[i] = load(m.states + at);
      g[i] = fma(dy, broadcast(C + i), g[i]);
      store(m.dB + at, kFirst ? g[i] * input : fma(g[i], input, load(m.dB + at)));
      by_input = fma(g[i], broadcast(B + i), by_input);
      g[i] = g[i] * decay;
      const Vec inner = g[i] * h[i];
      by_decay = fma(inner, load(f.a + weights + i * kWidth), by_decay);
      dA[i] = fma(inner, t, dA[i]);
    }
    store(m.by_decay + row, by_decay);
    store(m.by_input + row, by_input);
  }
  for (int i = 0; i < kStates; ++i) {
    store(m.grad + weights + i * kWidth, g[i]);
    store(m.dA + weights + i * kWidth, dA[i]);
  }
}

template <int kStates, Exponents kExponents>
static void there_and_back(const BackwardScratch& m, int64_t block, int64_t n, int64_t states, const float* before,
                           int64_t steps) {
  Vec h[kStates];
  replay<kStates, kExponents>(m, block, n, states, before, steps, h);
  if (block == 0) {
    retreat<kStates, true>(m, block, n, states, steps, h);
  } else {
    retreat<kStates, false>(m, block, n, states, steps, h);
  }
}

// The sum over the lanes of each of kStates vectors.
template <int kStates>
EM_INLINE void write_sums(const float* rows, float* out) {
  if constexpr (kStates == 4) {
    sum4(load(rows), load(rows + kWidth), load(rows + 2 * kWidth), load(rows + 3 * kWidth), out);
  } else {
    for (int i = 0; i < kStates; ++i) out[i] = sum(load(rows + i * kWidth));
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

    if (!task_.checkpoints) find_checkpoints(state_bytes);
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
  const T* dy_row(int32_t position) const {
    return static_cast<const T*>(task_.dy) + row(position) * p_.channels + task_.first;
  }
  int64_t u_at(int32_t position) const {
    return (row(position) * p_.u_directions + (m_.du ? 0 : g_)) * p_.channels + task_.first;
  }

  void load_weights(const void* source, int64_t at, float* out) const {
    memset(out, 0, static_cast<size_t>(f_.blocks * kWidth) * sizeof(float));
    memcpy(out, static_cast<const float*>(source) + at, static_cast<size_t>(task_.width) * sizeof(float));
  }

  void find_checkpoints(size_t state_bytes) const {
    memset(f_.h, 0, state_bytes);
    for (int64_t chunk = 0; chunk < chunks_of(p_); ++chunk) {
      memcpy(m_.checkpoints + chunk * f_.blocks * kWidth * p_.states, f_.h, state_bytes);
      if (chunk + 1 == chunks_of(p_)) break;  // the walk back recomputes the last chunk anyway
      const bool all_small = read_chunk(chunk);
      advance_blocks(f_, p_.states, steps_of(chunk), all_small);
    }
  }

  // The states before a chunk, [blocks][N][lane].
  const float* checkpoint(int64_t chunk) const {
    if (!task_.checkpoints) return m_.checkpoints + chunk * f_.blocks * kWidth * p_.states;
    const float* from = task_.checkpoints + checkpoint_at(p_, task_.batch, chunk, g_, task_.first);
    for (int64_t n = 0; n < p_.states; ++n, from += p_.channels) {
      for (int64_t d = 0; d < task_.width; d += kWidth) {
        store(m_.checkpoints + d * p_.states + n * kWidth, load_lanes(from + d, task_.width - d));
      }
    }
    return m_.checkpoints;
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
    const ForwardTask task{task_.problem, task_.batch, task_.first, task_.width, nullptr, nullptr, nullptr};
    return p_.softplus ? load_steps<T, true>(task, f_, g_, order, steps)
                       : load_steps<T, false>(task, f_, g_, order, steps);
  }

  void walk_back(int64_t chunk) const {
    const int32_t* order = order_of(chunk);
    const int64_t steps = steps_of(chunk);
    const bool all_small = read_chunk(chunk);
    read_output_gradients(order, steps);
    const float* states = checkpoint(chunk);
    int64_t n = 0;
    for (; n + kGroup <= p_.states; n += kGroup) walk_back_states<kGroup>(states, n, order, steps, all_small);
    for (; n < p_.states; ++n) walk_back_states<1>(states, n, order, steps, all_small);
    write_steps(order, steps);
  }

  // dy of a chunk, row by row, and nothing yet in the sums over the states.
  void read_output_gradients(const int32_t* order, int64_t steps) const {
    for (int64_t s = 0; s < steps; ++s) {
      const T* dy = dy_row(order[s]);
      if (s + kAhead < steps) prefetch_row(dy_row(order[s + kAhead]), task_.width);
      for (int64_t i = 0; i < f_.blocks; ++i) {
        const int64_t at = i * f_.stride + s * kWidth, d = i * kWidth;
        store(m_.dy + at, load_lanes(dy + d, task_.width - d));
        store(m_.by_decay + at, set(0.0f));
        store(m_.by_input + at, set(0.0f));
      }
    }
  }

  // kStates states of all blocks, from n on, with the checkpoint before the chunk.
  template <int kStates>
  void walk_back_states(const float* checkpoint, int64_t n, const int32_t* order, int64_t steps, bool all_small) const {
    for (int64_t i = 0; i < f_.blocks; ++i) {
      const float* before = checkpoint + i * kWidth * p_.states;
      switch (all_small ? Exponents::kSmall : exponents_of(f_, i, steps)) {
        case Exponents::kSmall: there_and_back<kStates, Exponents::kSmall>(m_, i, n, p_.states, before, steps); break;
        case Exponents::kDecaying:
          there_and_back<kStates, Exponents::kDecaying>(m_, i, n, p_.states, before, steps);
          break;
        case Exponents::kAny: there_and_back<kStates, Exponents::kAny>(m_, i, n, p_.states, before, steps); break;
      }
    }
    const int64_t first = task_.batch * p_.positions;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t at = ((row(order[s]) - first) * p_.directions + g_) * p_.states + n;
      write_sums<kStates>(m_.dB + s * kStates * kWidth, task_.shares.dB + at);
      write_sums<kStates>(m_.dC + s * kStates * kWidth, task_.shares.dC + at);
    }
  }

  // ddelta and du of a chunk, row by row, and its part of dD and dbias.
  void write_steps(const int32_t* order, int64_t steps) const {
    const T *deltas = static_cast<const T*>(p_.delta), *us = static_cast<const T*>(p_.u);
    T *ddeltas = static_cast<T*>(task_.gradients->delta), *dus = static_cast<T*>(task_.gradients->u);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t delta_row = delta_at(order[s]), u_row = u_at(order[s]);
      if (s + kAhead < steps) {
        if (ddeltas) prefetch_row<true>(ddeltas + delta_at(order[s + kAhead]), task_.width);
        if (dus && !m_.du) prefetch_row<true>(dus + u_at(order[s + kAhead]), task_.width);
      }
      float* shared = m_.du ? m_.du + order[s] * f_.blocks * kWidth : nullptr;
      for (int64_t i = 0; i < f_.blocks; ++i) {
        const int64_t d = i * kWidth, left = task_.width - d, at = i * f_.stride + s * kWidth;
        const Vec dy = load(m_.dy + at), by_input = load(m_.by_input + at), dt = load(f_.dt + at);
        const Vec u = load_lanes(us + u_row + d, left);
        Vec ddelta = fma(u, by_input, load(m_.by_decay + at) * set(kLn2));
        if (p_.softplus) ddelta = ddelta * sigmoid(load_lanes(deltas + delta_row + d, left) + load(f_.bias + d));
        const Vec du = fma(dt, by_input, load(f_.skip + d) * dy);
        store(m_.dD + d, fma(dy, u, load(m_.dD + d)));
        store(m_.dbias + d, load(m_.dbias + d) + ddelta);
        if (ddeltas) store_lanes(ddeltas + delta_row + d, ddelta, left);
        if (shared) {
          store(shared + d, load(shared + d) + du);
        } else if (dus) {
          store_lanes(dus + u_row + d, du, left);
        }
      }
    }
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
  const BackwardScratch m(p, task.width, task.checkpoints != nullptr, arena);
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
