// The forward scan of one batch element and one block of channels.
#ifndef EDGEMAMBA_SRC_SIMD_FORWARD_H
#define EDGEMAMBA_SRC_SIMD_FORWARD_H

#include "tile.h"

namespace edgemamba {
namespace EDGEMAMBA_ISA_NAMESPACE {

// The sum over directions is kept in float32: in y itself where y is float32, else beside it.
template <typename T>
static constexpr bool kSumsInPlace = sizeof(T) == sizeof(float);

template <typename T>
static int64_t forward_floats(const Problem& p, int64_t channels) {
  const int64_t padded = vectors(channels) * kWidth;
  const int64_t sums = kSumsInPlace<T> ? 0 : p.positions * padded;
  return Weights::floats(p, channels) + padded * p.states + 2 * kTile * p.states + 3 * kTile * kWidth + sums;
}

template <typename T>
static void forward_block(const Problem& p, void* out, int64_t b, int64_t first, int64_t channels, float* memory) {
  const FlushDenormals flush;
  const int64_t padded = vectors(channels) * kWidth;
  Weights weights(p, channels, memory);
  float* state = memory + Weights::floats(p, channels);  // [vectors][N][width]
  float* B = state + padded * p.states;                  // [tile][N]
  float* C = B + kTile * p.states;
  float* dt = C + kTile * p.states;  // [tile][width]; one vector's
  float* u = dt + kTile * kWidth;    // then dt * u
  float* tile_y = u + kTile * kWidth;
  float* sums = tile_y + kTile * kWidth;  // [P][padded]
  T* y = static_cast<T*>(out);

  // Direction 0 writes where it visits every position; otherwise all add to zero.
  const bool first_writes = p.steps == p.positions;
  if (!first_writes) {
    for (int64_t position = 0; position < p.positions; ++position) {
      if constexpr (kSumsInPlace<T>) {
        memset(&y[(b * p.positions + position) * p.channels + first], 0, static_cast<size_t>(channels) * sizeof(float));
      } else {
        memset(&sums[position * padded], 0, static_cast<size_t>(padded) * sizeof(float));
      }
    }
  }

  for (int64_t g = 0; g < p.directions; ++g) {
    const Rows<T> rows{p, b, g, first};
    const bool adds = g > 0 || !first_writes;
    weights.read(p, g, first, channels);
    memset(state, 0, static_cast<size_t>(padded * p.states) * sizeof(float));
    for (int64_t start = 0; start < p.steps; start += kTile) {
      const int steps = static_cast<int>(p.steps - start < kTile ? p.steps - start : kTile);
      const int32_t* positions = p.order + g * p.steps + start;
      read_projection(rows, p.B, positions, steps, B);
      read_projection(rows, p.C, positions, steps, C);
      for (int64_t vector = 0; vector < vectors(channels); ++vector) {
        const int64_t channel = vector * kWidth;
        const int lanes = static_cast<int>(channels - channel < kWidth ? channels - channel : kWidth);
        const bool in_range = read_steps(rows, weights, vector, lanes, positions, steps, dt, u);
        const Vec skip = load(weights.skip + channel);
        for (int s = 0; s < steps; ++s) {
          const Vec value = load(u + s * kWidth);
          store(tile_y + s * kWidth, mul(skip, value));
          store(u + s * kWidth, mul(load(dt + s * kWidth), value));
        }
        const float* decay = weights.decay + channel * p.states;
        float* h = state + channel * p.states;
        if (in_range) {
          advance_all<false>(decay, h, dt, u, B, C, p.states, steps, tile_y);
        } else {
          advance_all<true>(decay, h, dt, u, B, C, p.states, steps, tile_y);
        }
        for (int s = 0; s < steps; ++s) {
          Vec value = load(tile_y + s * kWidth);
          if constexpr (kSumsInPlace<T>) {
            float* to = &y[rows.y(positions[s]) + channel];
            if (adds) value = add(value, load_part(to, lanes));
            store_part(to, value, lanes);
          } else {
            float* to = &sums[positions[s] * padded + channel];
            if (adds) value = add(value, load(to));
            store(to, value);
          }
        }
      }
    }
  }

  if constexpr (!kSumsInPlace<T>) {
    for (int64_t position = 0; position < p.positions; ++position) {
      for (int64_t channel = 0; channel < channels; channel += kWidth) {
        const int lanes = static_cast<int>(channels - channel < kWidth ? channels - channel : kWidth);
        store_part(&y[(b * p.positions + position) * p.channels + first + channel],
                   load(&sums[position * padded + channel]), lanes);
      }
    }
  }
}

}  // namespace EDGEMAMBA_ISA_NAMESPACE
}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_FORWARD_H
