// The forward scan of one task. Included inside the namespace of its instruction set.
//
// Steps are taken in chunks. A chunk is first read row by row (channels are contiguous), converted to float32, and laid
// out so that each block of kWidth channels has its steps one after the other; then each block advances through the whole
// chunk with its states at hand; then the outputs are written row by row. So memory is streamed once, in whole rows,
// whatever the scan order, and the inner loop knows nothing of data types, orders or tails.

constexpr int64_t kChunk = 32;

struct ForwardScratch {
  int64_t blocks;  // of kWidth channels
  int64_t stride;  // floats from one block to the next in dt, x and out: one line more than needed, as the blocks of a
                   // power-of-two stride would all fall into the same few sets of the first-level cache
  float *a, *limit, *bias, *skip, *h, *dt, *x, *out, *B, *C;
  float* total;  // float32 sum over the directions, where y is narrower and there are several; else null

  ForwardScratch(const Problem& p, int64_t width, Arena& arena)
      : blocks(round_up(width, kWidth) / kWidth), stride(kChunk * kWidth + kAlign) {
    const int64_t lanes = blocks * kWidth;
    a = arena.take(lanes * p.states);
    h = arena.take(lanes * p.states);
    limit = arena.take(lanes);
    bias = arena.take(lanes);
    skip = arena.take(lanes);
    dt = arena.take(blocks * stride);
    x = arena.take(blocks * stride);
    out = arena.take(blocks * stride);
    B = arena.take(kChunk * p.states);
    C = arena.take(kChunk * p.states);
    total = p.dtype != EM_F32 && p.directions > 1 ? arena.take(p.positions * lanes) : nullptr;
  }
};

static size_t forward_scratch(const Problem& p, int64_t width) {
  Arena arena(nullptr);
  const ForwardScratch unused(p, width, arena);
  (void)unused;
  // take() of a null arena gives null, so `total` was counted above.
  return arena.used();
}

// Reads delta and u of one chunk: dt, x = dt * u, and out = D * u. False where a step is too large for exp2_in_range.
template <typename T, bool kSoftplus>
static bool load_steps(const ForwardTask& task, const ForwardScratch& m, int64_t direction, const int32_t* order,
                       int64_t steps) {
  const Problem& p = *task.problem;
  const int64_t u_direction = p.u_directions == 1 ? 0 : direction;
  const int64_t row0 = task.batch * p.positions;
  Mask large = none();
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t row = row0 + order[s];
    const T* delta = static_cast<const T*>(p.delta) + (row * p.directions + direction) * p.channels + task.first;
    const T* u = static_cast<const T*>(p.u) + (row * p.u_directions + u_direction) * p.channels + task.first;
    for (int64_t i = 0; i < m.blocks; ++i) {
      const int64_t d = i * kWidth, left = task.width - d, at = i * m.stride + s * kWidth;
      Vec dt = load_lanes(delta + d, left) + load(m.bias + d);
      if (kSoftplus) dt = softplus(dt);
      large = large | not_below_or_equal(kSoftplus ? dt : abs(dt), load(m.limit + d));
      const Vec here = load_lanes(u + d, left);
      store(m.dt + at, dt);
      store(m.x + at, dt * here);
      store(m.out + at, load(m.skip + d) * here);
    }
  }
  return !any(large);
}

// kStates states of one block through a chunk: out += <C, h>. B and C have `row` floats a step.
#ifndef EM_GROUP
#define EM_GROUP 2
#endif
#ifndef EM_NB
#define EM_NB 4
#endif
template <int kStates, bool kInRange>
static void advance(const float* a, float* h, const float* dt, const float* x, const float* B, const float* C,
                    int64_t row, int64_t steps, float* out) {
  constexpr int kGroup = kStates < EM_GROUP ? kStates : EM_GROUP;
  Vec state[kStates];
#pragma GCC unroll 16
  for (int n = 0; n < kStates; ++n) state[n] = load(h + n * kWidth);
  for (int64_t s = 0; s < steps; ++s, B += row, C += row) {
    const Vec t = load(dt + s * kWidth), input = load(x + s * kWidth);
    Vec sum[2] = {load(out + s * kWidth), set(0.0f)};
#pragma GCC unroll 16
    for (int n = 0; n < kStates; n += kGroup) {
      Vec decay[kGroup];
      if (kInRange) {
        exp2_in_range_group<kGroup>(t, a + n * kWidth, decay);
      } else {
        for (int k = 0; k < kGroup; ++k) decay[k] = exp2_any(t, load(a + (n + k) * kWidth));
      }
#pragma GCC unroll 16
      for (int k = 0; k < kGroup; ++k) {
        state[n + k] = fma(decay[k], state[n + k], input * broadcast(B + n + k));
        sum[k % 2] = fma(state[n + k], broadcast(C + n + k), sum[k % 2]);
      }
    }
    store(out + s * kWidth, kGroup > 1 ? sum[0] + sum[1] : sum[0]);
  }
#pragma GCC unroll 16
  for (int n = 0; n < kStates; ++n) store(h + n * kWidth, state[n]);
}

template <bool kInRange>
static void advance_all(const ForwardScratch& m, int64_t block, int64_t states, int64_t steps) {
  const float* a = m.a + block * states * kWidth;
  float* h = m.h + block * states * kWidth;
  const float *dt = m.dt + block * m.stride, *x = m.x + block * m.stride;
  float* out = m.out + block * m.stride;
  int64_t n = 0;
#define EM_ADVANCE(count)                                                                                       \
  for (; n + count <= states; n += count)                                                                       \
  advance<count, kInRange>(a + n * kWidth, h + n * kWidth, dt, x, m.B + n, m.C + n, states, steps, out)
  EM_ADVANCE(EM_NB);
  EM_ADVANCE(1);
#undef EM_ADVANCE
}

// Adds the outputs of a chunk to their rows, or starts the rows with them.
template <typename T, bool kAdd>
static void store_steps(const ForwardScratch& m, const int32_t* order, int64_t steps, int64_t width, T* y, int64_t row) {
  for (int64_t s = 0; s < steps; ++s) {
    T* out = y + order[s] * row;
    for (int64_t i = 0; i < m.blocks; ++i) {
      const int64_t d = i * kWidth, left = width - d;
      const Vec value = load(m.out + i * m.stride + s * kWidth);
      store_lanes(out + d, kAdd ? load_lanes(out + d, left) + value : value, left);
    }
  }
}

template <typename T>
static void clear_rows(T* y, int64_t rows, int64_t width, int64_t row) {
  for (int64_t i = 0; i < rows; ++i) memset(y + i * row, 0, static_cast<size_t>(width) * sizeof(T));
}

// All directions into `y`, which has `row` elements from one position to the next.
template <typename T, typename Out>
static void scan_directions(const ForwardTask& task, const ForwardScratch& m, Out* y, int64_t row) {
  const Problem& p = *task.problem;
  if (p.steps < p.positions) clear_rows(y, p.positions, task.width, row);
  for (int64_t g = 0; g < p.directions; ++g) {
    const int64_t weights = g * p.channels + task.first, lanes = m.blocks * kWidth;
    load_decay(p, g, task.first, task.width, m.a, m.limit);
    memset(m.bias, 0, static_cast<size_t>(lanes) * sizeof(float));
    memset(m.skip, 0, static_cast<size_t>(lanes) * sizeof(float));
    memcpy(m.bias, static_cast<const float*>(p.delta_bias) + weights, static_cast<size_t>(task.width) * sizeof(float));
    memcpy(m.skip, static_cast<const float*>(p.D) + weights, static_cast<size_t>(task.width) * sizeof(float));
    memset(m.h, 0, static_cast<size_t>(lanes * p.states) * sizeof(float));
    for (int64_t first = 0; first < p.steps; first += kChunk) {
      const int32_t* order = p.order + g * p.steps + first;
      const int64_t steps = p.steps - first < kChunk ? p.steps - first : kChunk;
      load_states<T>(p.B, p, task.batch, g, order, steps, m.B);
      load_states<T>(p.C, p, task.batch, g, order, steps, m.C);
      const bool in_range = p.softplus ? load_steps<T, true>(task, m, g, order, steps)
                                       : load_steps<T, false>(task, m, g, order, steps);
      for (int64_t i = 0; i < m.blocks; ++i) {
        if (in_range) {
          advance_all<true>(m, i, p.states, steps);
        } else {
          advance_all<false>(m, i, p.states, steps);
        }
      }
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
  const ForwardScratch m(p, task.width, arena);
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
