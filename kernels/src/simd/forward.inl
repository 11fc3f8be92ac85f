// The forward scan of one task. Included inside the namespace of its instruction set.
//
// Steps are taken in chunks. A chunk is first read row by row (channels are contiguous), converted to float32, and laid
// out so that each block of kWidth channels has its steps one after the other; then each block advances through the
// whole chunk with its states at hand; then the outputs are written row by row. So memory is streamed once, in whole
// rows, whatever the scan order, and the inner loop knows nothing of data types, orders or tails.

constexpr int64_t kChunk = EM_CHECKPOINT_STEPS;

// Neighbouring blocks whose softplus is computed together.
constexpr int kTogether = 4;

struct ForwardScratch {
  int64_t blocks;  // of kWidth channels
  int64_t stride;  // floats from one block to the next in dt, x and out: one line more than needed, as the blocks of a
                   // power-of-two stride would all fall into the same few sets of the first-level cache
  float *a, *small, *decaying, *bias, *skip, *h, *dt, *x, *out, *B, *C;
  float* total;  // float32 sum over the directions, where y is narrower and there are several; else null

  ForwardScratch(const Problem& p, int64_t width, bool writes, Arena& arena)
      : blocks(round_up(width, kWidth) / kWidth), stride(kChunk * kWidth + kAlign) {
    const int64_t lanes = blocks * kWidth;
    a = arena.take(lanes * p.states);
    h = arena.take(lanes * p.states);
    small = arena.take(lanes);
    decaying = arena.take(lanes);
    bias = arena.take(lanes);
    skip = arena.take(lanes);
    dt = arena.take(blocks * stride);
    x = arena.take(blocks * stride);
    out = arena.take(blocks * stride);
    B = arena.take(kChunk * p.states);
    C = arena.take(kChunk * p.states);
    total = writes && p.dtype != EM_F32 && p.directions > 1 ? arena.take(p.positions * lanes) : nullptr;
  }
};

static size_t forward_scratch(const Problem& p, int64_t width) {
  Arena arena(nullptr);
  const ForwardScratch unused(p, width, true, arena);
  (void)unused;
  // take() of a null arena gives null, so `total` was counted above.
  return arena.used();
}

// Where load_step reads and writes: pointers of its own, which vector stores cannot be taken to change.
struct StepRows {
  const float *bias, *small, *skip;
  float *dt, *x, *out;
  int64_t stride;
};

// One step of K neighbouring blocks from `block` on: dt, x = dt * u and out = D * u. Says in which lanes some exponent is
// not small. Of the last block only `left` channels may be read (kWhole: all of them).
template <int K, bool kSoftplus, bool kWhole, typename T>
EM_INLINE Mask load_step(const StepRows& m, int64_t block, const T* delta, const T* u, int64_t left) {
  const int64_t lane = block * kWidth;
  Vec dt[K];
  EM_EACH dt[k] = (kWhole ? load(delta + k * kWidth) : load_lanes(delta, left)) + load(m.bias + lane + k * kWidth);
  if (kSoftplus) softplus<K>(dt);
  Mask large = none();
  EM_EACH {
    const int64_t at = (block + k) * m.stride;
    const Vec here = kWhole ? load(u + k * kWidth) : load_lanes(u, left);
    large = large | not_below_or_equal(kSoftplus ? dt[k] : abs(dt[k]), load(m.small + lane + k * kWidth));
    store(m.dt + at, dt[k]);
    store(m.x + at, dt[k] * here);
    store(m.out + at, load(m.skip + lane + k * kWidth) * here);
  }
  return large;
}

// Reads delta and u of one chunk, row by row. True where all exponents are small.
template <typename T, bool kSoftplus>
static bool load_steps(const ForwardTask& task, const ForwardScratch& m, int64_t direction, const int32_t* order,
                       int64_t steps) {
  const Problem& p = *task.problem;
  const int64_t u_direction = p.u_directions == 1 ? 0 : direction;
  const int64_t whole = task.width / kWidth, blocks = m.blocks;
  StepRows rows = {m.bias, m.small, m.skip, m.dt, m.x, m.out, m.stride};
  Mask large = none();
  const auto delta_row = [&](int32_t position) {
    const int64_t row = (task.batch * p.positions + position) * p.directions + direction;
    return static_cast<const T*>(p.delta) + row * p.channels + task.first;
  };
  const auto u_row = [&](int32_t position) {
    const int64_t row = (task.batch * p.positions + position) * p.u_directions + u_direction;
    return static_cast<const T*>(p.u) + row * p.channels + task.first;
  };
  for (int64_t s = 0; s < steps; ++s, rows.dt += kWidth, rows.x += kWidth, rows.out += kWidth) {
    const T *delta = delta_row(order[s]), *u = u_row(order[s]);
    if (s + kAhead < steps) {
      prefetch_row(delta_row(order[s + kAhead]), task.width);
      prefetch_row(u_row(order[s + kAhead]), task.width);
    }
    int64_t i = 0;
    for (; i + kTogether <= whole; i += kTogether, delta += kTogether * kWidth, u += kTogether * kWidth) {
      large = large | load_step<kTogether, kSoftplus, true>(rows, i, delta, u, 0);
    }
    for (; i < whole; ++i, delta += kWidth, u += kWidth) {
      large = large | load_step<1, kSoftplus, true>(rows, i, delta, u, 0);
    }
    if (i < blocks) large = large | load_step<1, kSoftplus, false>(rows, i, delta, u, task.width - i * kWidth);
  }
  return !any(large);
}

// The same for one block of a chunk in which some are not.
static Exponents exponents_of(const ForwardScratch& m, int64_t block, int64_t steps) {
  const float* dt = m.dt + block * m.stride;
  const Vec small = load(m.small + block * kWidth), decaying = load(m.decaying + block * kWidth);
  Mask large = none(), other = none();
  for (int64_t s = 0; s < steps; ++s) {
    const Vec t = load(dt + s * kWidth);
    large = large | not_below_or_equal(abs(t), small);
    other = other | not_below_or_equal(t, decaying) | not_below_or_equal(set(0.0f), t);
  }
  return !any(large) ? Exponents::kSmall : any(other) ? Exponents::kAny : Exponents::kDecaying;
}

// kStates states of one block through a chunk: out += <C, h>. B and C have `row` floats a step. The states stay in
// registers; four of them leave enough of AVX2's sixteen for the exponentials in flight.
template <int kStates, Exponents kExponents>
static void advance(const float* a, float* h, const float* dt, const float* x, const float* B, const float* C,
                    int64_t row, int64_t steps, float* out) {
  Vec state[kStates];
  for (int n = 0; n < kStates; ++n) state[n] = load(h + n * kWidth);
  for (int64_t s = 0; s < steps; ++s, B += row, C += row) {
    const Vec t = load(dt + s * kWidth), input = load(x + s * kWidth);
    Vec sum = load(out + s * kWidth);
    for (int n = 0; n < kStates; ++n) {
      const Power decay = exp2<kExponents>(t, load(a + n * kWidth));
      state[n] = times_plus(decay, state[n], input * broadcast(B + n));
      sum = fma(state[n], broadcast(C + n), sum);
    }
    store(out + s * kWidth, sum);
  }
  for (int n = 0; n < kStates; ++n) store(h + n * kWidth, state[n]);
}

template <Exponents kExponents>
static void advance_states(const ForwardScratch& m, int64_t block, int64_t states, int64_t steps) {
  const float* a = m.a + block * states * kWidth;
  float* h = m.h + block * states * kWidth;
  const float *dt = m.dt + block * m.stride, *x = m.x + block * m.stride;
  float* out = m.out + block * m.stride;
  int64_t n = 0;
  for (; n + 4 <= states; n += 4) {
    advance<4, kExponents>(a + n * kWidth, h + n * kWidth, dt, x, m.B + n, m.C + n, states, steps, out);
  }
  for (; n < states; ++n) {
    advance<1, kExponents>(a + n * kWidth, h + n * kWidth, dt, x, m.B + n, m.C + n, states, steps, out);
  }
}

// All blocks through one chunk; `all_small` as load_steps found it.
static void advance_blocks(const ForwardScratch& m, int64_t states, int64_t steps, bool all_small) {
  for (int64_t i = 0; i < m.blocks; ++i) {
    switch (all_small ? Exponents::kSmall : exponents_of(m, i, steps)) {
      case Exponents::kSmall: advance_states<Exponents::kSmall>(m, i, states, steps); break;
      case Exponents::kDecaying: advance_states<Exponents::kDecaying>(m, i, states, steps); break;
      case Exponents::kAny: advance_states<Exponents::kAny>(m, i, states, steps); break;
    }
  }
}

// Adds the outputs of a chunk to their rows, or starts the rows with them.
template <typename T, bool kAdd>
static void store_steps(const ForwardScratch& m, const int32_t* order, int64_t steps, int64_t width, T* y,
                        int64_t row) {
  const int64_t whole = width / kWidth, left = width % kWidth, stride = m.stride;
  const float* block = m.out;  // vector stores cannot be taken to change this copy
  for (int64_t s = 0; s < steps; ++s, block += kWidth) {
    T* out = y + order[s] * row;
    for (int64_t i = 0; i < whole; ++i, out += kWidth) {
      const Vec value = load(block + i * stride);
      store(out, kAdd ? load(out) + value : value);
    }
    if (left == 0) continue;
    const Vec value = load(block + whole * stride);
    store_part(out, kAdd ? load_part(out, left) + value : value, left);
  }
}

template <typename T>
static void clear_rows(T* y, int64_t rows, int64_t width, int64_t row) {
  for (int64_t i = 0; i < rows; ++i) memset(y + i * row, 0, static_cast<size_t>(width) * sizeof(T));
}

static inline int64_t chunks_of(const Problem& p) { return (p.steps + kChunk - 1) / kChunk; }

// Where the checkpoint before a chunk lies in (B, chunks, G, N, D), for the first channel of a task.
static inline int64_t checkpoint_at(const Problem& p, int64_t batch, int64_t chunk, int64_t direction, int64_t first) {
  return ((batch * chunks_of(p) + chunk) * p.directions + direction) * p.states * p.channels + first;
}

static void save_states(const ForwardScratch& m, const Problem& p, int64_t width, float* out) {
  for (int64_t n = 0; n < p.states; ++n, out += p.channels) {
    for (int64_t d = 0; d < width; d += kWidth) {
      store_lanes(out + d, load(m.h + d * p.states + n * kWidth), width - d);
    }
  }
}

// All directions into `y`, which has `row` elements from one position to the next.
template <typename T, typename Out>
static void scan_directions(const ForwardTask& task, const ForwardScratch& m, Out* y, int64_t row) {
  const Problem& p = *task.problem;
  if (p.steps < p.positions) clear_rows(y, p.positions, task.width, row);
  for (int64_t g = 0; g < p.directions; ++g) {
    const int64_t weights = g * p.channels + task.first, lanes = m.blocks * kWidth;
    load_decay(p, g, task.first, task.width, m.a, m.small, m.decaying);
    memset(m.bias, 0, static_cast<size_t>(lanes) * sizeof(float));
    memset(m.skip, 0, static_cast<size_t>(lanes) * sizeof(float));
    memcpy(m.bias, static_cast<const float*>(p.delta_bias) + weights, static_cast<size_t>(task.width) * sizeof(float));
    memcpy(m.skip, static_cast<const float*>(p.D) + weights, static_cast<size_t>(task.width) * sizeof(float));
    memset(m.h, 0, static_cast<size_t>(lanes * p.states) * sizeof(float));
    for (int64_t first = 0; first < p.steps; first += kChunk) {
      const int32_t* order = p.order + g * p.steps + first;
      const int64_t steps = p.steps - first < kChunk ? p.steps - first : kChunk;
      if (task.checkpoints) {
        const int64_t at = checkpoint_at(p, task.batch, first / kChunk, g, task.first);
        save_states(m, p, task.width, task.checkpoints + at);
      }
      load_states<T>(p.B, p, task.batch, g, order, steps, m.B);
      load_states<T>(p.C, p, task.batch, g, order, steps, m.C);
      const bool all_small =
          p.softplus ? load_steps<T, true>(task, m, g, order, steps) : load_steps<T, false>(task, m, g, order, steps);
      advance_blocks(m, p.states, steps, all_small);
      if (g == 0 && p.steps == p.positions) {
        store_steps<Out, false>(m, order, steps, task.width, y, row);
      } else {
        store_steps<Out, true>(m, order, steps, task.width, y, row);
      }
    }
  }
}

template <typename T>
static void forward_of(const ForwardTask& task) {
  const Problem& p = *task.problem;
  const FlushSubnormals flush;
  Arena arena(task.scratch);
  const ForwardScratch m(p, task.width, true, arena);
  T* y = static_cast<T*>(task.y) + task.batch * p.positions * p.channels + task.first;
  if (m.total == nullptr) {
    scan_directions<T>(task, m, y, p.channels);
    return;
  }
  const int64_t lanes = m.blocks * kWidth;
  scan_directions<T>(task, m, m.total, lanes);
  for (int64_t i = 0; i < p.positions; ++i) {
    for (int64_t d = 0; d < task.width; d += kWidth) {
      store_lanes(y + i * p.channels + d, load(m.total + i * lanes + d), task.width - d);
    }
  }
}

static void forward(const ForwardTask& task) {
  switch (task.problem->dtype) {
    case EM_F16: return forward_of<Float16>(task);
    case EM_BF16: return forward_of<BFloat16>(task);
    default: return forward_of<float>(task);
  }
}
