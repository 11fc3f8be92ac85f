// What forward and backward share: the geometry of a block of channels, and the sequential heart over one tile of steps.
//
// A task owns one batch element and a block of channels, and walks all directions. The steps are cut into tiles: within a
// tile, rows of u and delta are touched for every vector of channels of the block before the walk goes on, so that memory
// is read along the channels and each state stays in registers for a whole tile.
#ifndef EDGEMAMBA_SRC_SIMD_TILE_H
#define EDGEMAMBA_SRC_SIMD_TILE_H

#include "../problem.h"
#include "vec_math.h"

namespace edgemamba {
namespace EDGEMAMBA_ISA_NAMESPACE {

// Steps of a tile. The buffers of one vector's tile (three of kTile * width floats) fit into the first-level cache
// beside B and C of the tile.
constexpr int kTile = 32;
// States of one vector kept in registers together.
constexpr int kStatesTogether = 4;

constexpr int kWidth = Vec::width;

template <typename T>
static inline const T* typed(const void* data) {
  return static_cast<const T*>(data);
}

static inline int64_t vectors(int64_t channels) { return (channels + kWidth - 1) / kWidth; }

// Addresses of a task's rows. Channel offsets are relative to the block's first channel.
template <typename T>
struct Rows {
  const Problem& p;
  int64_t b, g, first;

  int64_t u(int32_t position) const {
    return ((b * p.positions + position) * p.u_directions + (p.u_directions == 1 ? 0 : g)) * p.channels + first;
  }
  int64_t delta(int32_t position) const {
    return ((b * p.positions + position) * p.directions + g) * p.channels + first;
  }
  int64_t state(int32_t position) const { return ((b * p.positions + position) * p.directions + g) * p.states; }
  int64_t y(int32_t position) const { return (b * p.positions + position) * p.channels + first; }
};

// The weights of one direction for a block: per vector, so that every load below is aligned to whole vectors.
struct Weights {
  float* decay;      // [vectors][N][width]: A * log2(e)
  float* steepest;   // [vectors][width]: max |decay| over the states; NaN where one is
  float* skip;       // [vectors][width]: D
  float* bias;       // [vectors][width]: delta_bias

  static int64_t floats(const Problem& p, int64_t channels) { return vectors(channels) * kWidth * (p.states + 3); }

  Weights(const Problem& p, int64_t channels, float* memory)
      : decay(memory),
        steepest(decay + vectors(channels) * kWidth * p.states),
        skip(steepest + vectors(channels) * kWidth),
        bias(skip + vectors(channels) * kWidth) {}

  void read(const Problem& p, int64_t g, int64_t first, int64_t channels) {
    for (int64_t i = 0; i < vectors(channels) * kWidth; ++i) {
      const int64_t vector = i / kWidth, lane = i % kWidth;
      const int64_t row = g * p.channels + first + i;
      float largest = 0.0f;
      for (int64_t n = 0; n < p.states; ++n) {
        const float a = i < channels ? typed<float>(p.A)[row * p.states + n] * kLog2E : 0.0f;
        decay[(vector * p.states + n) * kWidth + lane] = a;
        const float size = a < 0 ? -a : a;
        if (largest == largest && !(size <= largest)) largest = size;  // a NaN becomes, and stays, the largest
      }
      steepest[i] = largest;
      skip[i] = i < channels ? typed<float>(p.D)[row] : 0.0f;
      bias[i] = i < channels ? typed<float>(p.delta_bias)[row] : 0.0f;
    }
  }
};

// B or C of a tile's steps, as [steps][N] floats.
template <typename T>
static inline void read_projection(const Rows<T>& rows, const void* data, const int32_t* positions, int steps, float* out) {
  const int64_t states = rows.p.states;
  for (int s = 0; s < steps; ++s) {
    const T* from = typed<T>(data) + rows.state(positions[s]);
    for (int64_t n = 0; n < states; ++n) out[s * states + n] = to_float(from[n]);
  }
}

// One vector's dt and u over a tile. Returns whether |dt * decay| stays within exp2_product's range throughout.
template <typename T>
static inline bool read_steps(const Rows<T>& rows, const Weights& weights, int64_t vector, int lanes,
                              const int32_t* positions, int steps, float* dt, float* u) {
  const Problem& p = rows.p;
  const int64_t channel = vector * kWidth;
  const Vec bias = load(weights.bias + channel);
  Vec largest = set1(0.0f), poison = set1(0.0f);
  for (int s = 0; s < steps; ++s) {
    Vec t = add(load_part(typed<T>(p.delta) + rows.delta(positions[s]) + channel, lanes), bias);
    if (p.softplus) t = softplus(t);
    store(dt + s * kWidth, t);
    store(u + s * kWidth, load_part(typed<T>(p.u) + rows.u(positions[s]) + channel, lanes));
    largest = max(largest, abs(t));
    poison = fma(t, set1(0.0f), poison);  // max forgets a NaN; this does not
  }
  return all_at_most(add(mul(largest, load(weights.steepest + channel)), poison), set1(kExp2Range));
}

// The recurrence for States states of one vector over a tile: h = exp(dt A) h + (dt u) B, out += C h.
template <bool Any, int States>
static inline void advance(const float* decay, float* state, const float* dt, const float* dtu, const float* B,
                           const float* C, int64_t stride, int steps, float* out) {
  Vec h[States], a[States];
  for (int n = 0; n < States; ++n) {
    h[n] = load(state + n * kWidth);
    a[n] = load(decay + n * kWidth);
  }
  for (int s = 0; s < steps; ++s) {
    const Vec t = load(dt + s * kWidth), x = load(dtu + s * kWidth);
    Vec sum = load(out + s * kWidth);
    for (int n = 0; n < States; ++n) {
      const Vec e = Any ? exp2_product_any(t, a[n]) : exp2_product(t, a[n]);
      h[n] = fma(e, h[n], mul(x, set1(B[s * stride + n])));
      sum = fma(h[n], set1(C[s * stride + n]), sum);
    }
    store(out + s * kWidth, sum);
  }
  for (int n = 0; n < States; ++n) store(state + n * kWidth, h[n]);
}

template <bool Any>
static inline void advance_all(const float* decay, float* state, const float* dt, const float* dtu, const float* B,
                               const float* C, int64_t states, int steps, float* out) {
  int64_t n = 0;
  for (; n + kStatesTogether <= states; n += kStatesTogether) {
    advance<Any, kStatesTogether>(decay + n * kWidth, state + n * kWidth, dt, dtu, B + n, C + n, states, steps, out);
  }
  for (; n < states; ++n) {
    advance<Any, 1>(decay + n * kWidth, state + n * kWidth, dt, dtu, B + n, C + n, states, steps, out);
  }
}

}  // namespace EDGEMAMBA_ISA_NAMESPACE
}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_TILE_H
