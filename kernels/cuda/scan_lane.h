// One thread of the scan: one channel of one chunk of one direction, its N states in registers. The work between two
// barriers is a member function; scan_block.h puts them in order.
//
// Steps go in tiles. While tile k is computed, the loads of tile k + 1 are under way into registers; what is elementwise
// (conversion, softplus) happens once they have landed, for a whole tile at a time, and passes through shared memory:
//   inputs       each thread's own (dt, u): lets the step loop stay rolled, which registers could not
//   projections  B and C in float32, converted once for a block and read as broadcasts of 16 bytes
//   positions    of four tiles, because a tile's loads need them one tile ahead, and they need loading themselves
#ifndef EDGEMAMBA_CUDA_SCAN_LANE_H
#define EDGEMAMBA_CUDA_SCAN_LANE_H

#include "scan_args.h"

namespace edgemamba {
namespace cuda {

struct DtU {
  float dt, u;
};

template <typename Element>
struct Bytes {
  typedef char type;
};
template <typename Element>
struct Bytes<const Element> {
  typedef const char type;
};

// Element `index` rows further: one multiply-add on the address. `row` is the row's length in bytes, below 2^31.
template <typename Element>
EM_HD Element* rows_on(Element* base, int index, int row) {
  typedef typename Bytes<Element>::type Byte;
  return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(base) + static_cast<Index>(index) * row);
}

template <typename Value>
using Plain = Value;

// kLocal: from state 0, without outputs, for the chunk's last state and sum of dt (the chunked form's first pass).
// Cell: what a value in shared memory is; the tests' cells know who touched them since the last barrier.
template <typename T, int kN, bool kLocal, template <typename> class Cell = Plain>
struct Lane {
  typedef typename T::Bits Bits;
  // An enum, because NVRTC makes a variable in the module of each static constant.
  enum : int {
    kTile = kN <= 16 ? 8 : kN <= 32 ? 4 : 2,
    kRows = kLocal ? 1 : 2,                             // B, or B and C
    kColumns = kRows * kN,                              // of one step: B's states, then C's
    kProjections = kTile * kColumns,                    // of a tile
    kOwn = (kProjections + kWarp - 1) / kWarp,          // at most, for one thread to load
    kRing = 4
  };

  struct Shared {
    alignas(16) Cell<float> projections[2][kProjections];  // [tile & 1][step][B, C][n]
    alignas(16) Cell<DtU> inputs[kTile][kMaxThreads];
    Cell<int> positions[kRing][kTile];  // -1: no step
  };

  float a[kN], h[kN];
  float skip, bias, dt_sum;
  // This thread's channel (u, delta, y and what it writes by step) or its direction (B, C, order) at position or step 0.
  const Bits *u, *delta, *B, *C;
  const int* order;
  Bits* y;
  float* partial;
  int* step_of;  // null in blocks that do not fill it
  int first, end;  // steps
  bool active;     // a thread past the last channel loads that one's values and stores nothing
  int thread, threads;
  Bits next_u[kTile], next_delta[kTile], next_projections[kOwn];
  int next_position;

  EM_HD int tiles() const { return (end - first + kTile - 1) / kTile; }

  EM_HD void begin(const ScanArgs& s, unsigned block, int thread_, int threads_) {
    thread = thread_;
    threads = threads_;
    const Block at = place(s, block);
    const Index b = at.batch, g = at.direction;
    const Index last = first_step(s, at.chunk) + s.chunk_steps;
    first = static_cast<int>(first_step(s, at.chunk));
    end = static_cast<int>(last < s.steps ? last : s.steps);
    const int d = channel(s, at);
    active = static_cast<Index>(at.tile) * threads + thread < s.channels;
    u = static_cast<const Bits*>(s.u) + u_start(s, b, g) + d;
    delta = static_cast<const Bits*>(s.delta) + input_start(s, b, g) + d;
    B = static_cast<const Bits*>(s.B) + projection_start(s, b, g);
    C = static_cast<const Bits*>(s.C) + projection_start(s, b, g);
    order = s.order + g * s.steps;
    y = static_cast<Bits*>(s.y) + b * s.positions * s.channels + d;
    partial = s.partial == nullptr ? nullptr : s.partial + partial_start(s, b, g) + d;
    step_of = s.step_of == nullptr || at.batch != 0 || at.tile != 0 ? nullptr : s.step_of + g * s.positions;
    skip = s.D[g * s.channels + d];
    bias = s.delta_bias[g * s.channels + d];
    dt_sum = 0.0f;
    const float* A = s.A + (g * s.channels + d) * s.states_per_channel;
    // Padding up to kN is harmless: a = 0, h = 0, B = C = 0.
    const int N = s.states_per_channel;
    EM_UNROLL
    for (int n = 0; n < kN; ++n) {
      a[n] = n < N ? A[n] * kLog2E : 0.0f;
      // A NaN in A, which the polynomial's clamps would swallow, is a NaN in the state.
      h[n] = a[n] != a[n] ? a[n] : 0.0f;
    }
    if (kLocal || s.states == nullptr) return;
    const float* initial = s.states + state_start(s, b, g, at.chunk) + d;
    EM_UNROLL
    for (int n = 0; n < kN; ++n) {
      if (n < N) h[n] = initial[static_cast<Index>(n) * s.channels];
    }
  }

  // The last chunk's own states are nobody's initial ones: the first pass leaves it out.
  EM_HD static Block place(const ScanArgs& s, unsigned block) {
    return block_at(block, s.tiles, kLocal ? s.chunks - 1 : s.chunks, s.directions);
  }
  EM_HD static Index first_step(const ScanArgs& s, Index chunk) { return chunk * s.chunk_steps; }
  EM_HD int channel(const ScanArgs& s, const Block& at) const {
    const Index d = static_cast<Index>(at.tile) * threads + thread;
    return d < s.channels ? static_cast<int>(d) : s.channels - 1;
  }

  // Positions of tile k: load, and hand to the block. One outside 0..P-1 is no step.
  EM_HD void fetch_positions(const ScanArgs& s, int k) {
    next_position = -1;
    const int step = first + k * kTile + thread;
    if (thread < kTile && step < end) {
      const int p = order[step];
      if (static_cast<unsigned>(p) < static_cast<unsigned>(s.positions)) next_position = p;  // no negative one either
    }
  }
  EM_HD void stage_positions(int k, Shared& shared) const {
    if (thread >= kTile) return;
    shared.positions[k % kRing][thread] = next_position;
    if (step_of != nullptr && next_position >= 0) step_of[next_position] = first + k * kTile + thread;
  }

  // Loads of tile k, whose positions have been staged.
  EM_HD void fetch(const ScanArgs& s, int k, const Shared& shared) {
    const Cell<int>* positions = shared.positions[k % kRing];
    EM_UNROLL
    for (int t = 0; t < kTile; ++t) {
      const int staged = positions[t], p = staged < 0 ? 0 : staged;  // unused, but there: a load without a branch
      next_u[t] = *rows_on(u, p, s.u_row);
      next_delta[t] = *rows_on(delta, p, s.delta_row);
    }
    EM_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (i * threads >= kProjections) continue;  // for the whole block
      const int n = own_column(i) % kN, t = own_step(i);
      const Bits* column = (own_column(i) < kN ? B : C) + (n < s.states_per_channel ? n : s.states_per_channel - 1);
      const int p = positions[t < kTile ? t : kTile - 1];
      next_projections[i] = *rows_on(column, p < 0 ? 0 : p, s.projection_row);
    }
  }

  // Which element of a tile's projections is this thread's i-th? Consecutive threads take consecutive ones. Up to a warp's
  // width the column is the same for all i, because blocks are whole warps.
  EM_HD int own_column(int i) const {
    return kColumns <= kWarp ? thread % kColumns : (i * threads + thread) % kColumns;
  }
  EM_HD int own_step(int i) const {
    return kColumns <= kWarp ? i * (threads / kColumns) + thread / kColumns : (i * threads + thread) / kColumns;
  }

  // What was loaded, converted, to where `compute` looks for it. No step: dt = 0 and u = 0, which keeps the state.
  EM_HD void stage(const ScanArgs& s, int k, Shared& shared) {
    const Cell<int>* positions = shared.positions[k % kRing];
    float dt[kTile];
    EM_UNROLL
    for (int t = 0; t < kTile; ++t) dt[t] = to_float(T(), next_delta[t]) + bias;
    if (s.softplus) {  // around the loop: the chains of operations of all its steps overlap
      EM_UNROLL
      for (int t = 0; t < kTile; ++t) dt[t] = softplus<sizeof(Bits) == 4>(dt[t]);
    }
    int all = 0;  // negative where one is: once in a walk, or never
    EM_UNROLL
    for (int t = 0; t < kTile; ++t) all |= positions[t];
    if (all < 0) {
      EM_UNROLL
      for (int t = 0; t < kTile; ++t) {
        if (positions[t] < 0) dt[t] = 0.0f, next_u[t] = 0;
      }
    }
    EM_UNROLL
    for (int t = 0; t < kTile; ++t) shared.inputs[t][thread] = DtU{dt[t], to_float(T(), next_u[t])};
    EM_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (i * threads >= kProjections) continue;
      const int t = own_step(i);
      if (t >= kTile) continue;
      const bool is_value = own_column(i) % kN < s.states_per_channel && positions[t] >= 0;
      shared.projections[k & 1][i * threads + thread] = is_value ? to_float(T(), next_projections[i]) : 0.0f;
    }
  }

  EM_HD void compute(const ScanArgs& s, int k, const Shared& shared) {
    const int start = first + k * kTile;
    const int count = end - start < kTile ? end - start : kTile;
    EM_LOOP
    for (int t = 0; t < count; ++t) {
      const DtU in = shared.inputs[t][thread];
      const Cell<float>* rows = &shared.projections[k & 1][t * kRows * kN];
      if (kLocal) dt_sum += in.dt;
      const float value = step<kN, !kLocal>(in.dt, in.u, skip, a, rows, rows + kN * (kRows - 1), h);
      if (!kLocal && active) write(s, start + t, shared.positions[k % kRing] + t, value);
    }
  }

  EM_HD void write(const ScanArgs& s, int at, const Cell<int>* position, float value) const {
    if (s.partial != nullptr) {
      *rows_on(partial, at, s.partial_row) = value;
      return;
    }
    const int p = *position;
    if (p >= 0) to_bits(T(), value, rows_on(y, p, s.y_row));
  }

  EM_HD void finish(const ScanArgs& s, unsigned block) const {
    if (!kLocal || !active) return;
    const Block at = place(s, block);
    const int d = channel(s, at);
    s.dt_sums[sum_start(s, at.batch, at.direction, at.chunk) + d] = dt_sum;
    float* states = s.states + state_start(s, at.batch, at.direction, at.chunk) + d;
    EM_UNROLL
    for (int n = 0; n < kN; ++n) {
      if (n < s.states_per_channel) states[static_cast<Index>(n) * s.channels] = h[n];
    }
  }
};

// Second pass: item i of B * G * N * D walks the chunks and leaves in `states` what each begins with. The decay over a
// chunk is 2^(a sum dt): one sum for all of a channel's states.
EM_HD void combine(const ScanArgs& s, Index i) {
  const Index d = i % s.channels;
  i /= s.channels;
  const Index n = i % s.states_per_channel;
  i /= s.states_per_channel;
  const Index g = i % s.directions, b = i / s.directions;
  const float a = s.A[(g * s.channels + d) * s.states_per_channel + n] * kLog2E;
  float h = a != a ? a : 0.0f;
  EM_LOOP
  for (int chunk = 0; chunk < s.chunks; ++chunk) {
    float* state = s.states + state_start(s, b, g, chunk) + n * s.channels + d;
    const bool last = chunk + 1 == s.chunks;  // nothing was computed for it
    const float local = last ? 0.0f : *state;
    const float decay = last ? 0.0f : exp2_unit(a * s.dt_sums[sum_start(s, b, g, chunk) + d]);
    *state = h;
    h = fma_of(decay, h, local);
  }
}

// Adds up the directions that visit a position, in their order: item i of B * P * D / kWidth, kWidth channels each.
template <typename T, int kWidth>
EM_HD void reduce(const ScanArgs& s, Index i) {
  struct alignas(4 * kWidth) Values {
    float at[kWidth];
  };
  struct alignas(sizeof(typename T::Bits) * kWidth) Outputs {
    typename T::Bits at[kWidth];
  };
  const Index columns = s.channels / kWidth;
  const Index d = i % columns * kWidth;
  i /= columns;
  const Index p = i % s.positions, b = i / s.positions;
  Values sum = {};
  for (int g = 0; g < s.directions; ++g) {
    const int step = s.step_of[g * s.positions + p];
    if (step < 0) continue;
    const Values own = *reinterpret_cast<const Values*>(s.partial + partial_start(s, b, g) + static_cast<Index>(step) * s.channels + d);
    EM_UNROLL
    for (int j = 0; j < kWidth; ++j) sum.at[j] += own.at[j];
  }
  Outputs out;
  EM_UNROLL
  for (int j = 0; j < kWidth; ++j) to_bits(T(), sum.at[j], &out.at[j]);
  *reinterpret_cast<Outputs*>(static_cast<typename T::Bits*>(s.y) + (b * s.positions + p) * s.channels + d) = out;
}

}  // namespace cuda
}  // namespace edgemamba

#endif  // EDGEMAMBA_CUDA_SCAN_LANE_H
