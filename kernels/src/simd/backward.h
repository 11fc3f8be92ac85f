// The gradients of one batch element and one block of channels.
//
// For each direction: walk forwards and keep the states at the start of every tile; then take the tiles from the last to
// the first, recompute the states inside from the checkpoint, and walk backwards:
//
//   G_s = dy_s C_s + exp(dt_{s+1} A) G_{s+1}                 the gradient of h_s
//   dC_s = dy_s h_s          dB_s = G_s dt_s u_s             summed over the channels
//   dA += G_s dt_s exp(dt_s A) h_{s-1}
//   ddt_s = sum_n G_s (A exp(dt_s A) h_{s-1} + B_s u_s)      then through softplus to delta and delta_bias
//   du_s = D dy_s + dt_s sum_n G_s B_s
#ifndef EDGEMAMBA_SRC_SIMD_BACKWARD_H
#define EDGEMAMBA_SRC_SIMD_BACKWARD_H

#include "tile.h"

namespace edgemamba {
namespace EDGEMAMBA_ISA_NAMESPACE {

constexpr float kLn2 = 0.693147181f;

static inline int64_t tiles(const Problem& p) { return (p.steps + kTile - 1) / kTile; }

// The buffers of a task, cut from one piece of memory.
struct BackwardBuffers {
  float *checkpoints;                     // [tiles][vectors][N][width]
  float *state, *grad, *dA;               // [vectors][N][width]
  float *B, *C;                           // [tile][N]
  float *dB, *dC;                         // [tile][N][width], summed over the block's vectors
  float *decays, *states;                 // [tile][N][width], [tile + 1][N][width]
  float *dt, *u, *dtu, *dy, *through_decay, *through_input;  // [tile][width]
  float *dD, *dbias;                      // [vectors][width]
  float *du;                              // [P][vectors * width]; where directions share u

  BackwardBuffers(const Problem& p, int64_t channels, float* memory) {
    const int64_t padded = vectors(channels) * kWidth, in_tile = kTile * p.states;
    const auto take = [this, memory](int64_t count) {
      float* const taken = memory == nullptr ? nullptr : memory + floats;
      floats += count;
      return taken;
    };
    checkpoints = take(tiles(p) * padded * p.states);
    for (float** buffer : {&state, &grad, &dA}) *buffer = take(padded * p.states);
    for (float** buffer : {&B, &C}) *buffer = take(in_tile);
    for (float** buffer : {&dB, &dC, &decays}) *buffer = take(in_tile * kWidth);
    states = take((in_tile + p.states) * kWidth);
    for (float** buffer : {&dt, &u, &dtu, &dy, &through_decay, &through_input}) *buffer = take(kTile * kWidth);
    for (float** buffer : {&dD, &dbias}) *buffer = take(padded);
    du = take(p.u_directions == 1 ? p.positions * padded : 0);
  }

  int64_t floats = 0;
};

static int64_t backward_floats(const Problem& p, int64_t channels) {
  return Weights::floats(p, channels) + BackwardBuffers(p, channels, nullptr).floats;
}

// Fills `decays` and `states` of a tile from the state before it.
template <bool Any>
static inline void replay(const float* decay, const float* before, const BackwardBuffers& m, int64_t states, int steps) {
  memcpy(m.states, before, static_cast<size_t>(states * kWidth) * sizeof(float));
  for (int s = 0; s < steps; ++s) {
    const Vec t = load(m.dt + s * kWidth), x = load(m.dtu + s * kWidth);
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = (s * states + n) * kWidth;
      const Vec a = load(decay + n * kWidth);
      const Vec e = Any ? exp2_product_any(t, a) : exp2_product(t, a);
      store(m.decays + at, e);
      store(m.states + at + states * kWidth, fma(e, load(m.states + at), mul(x, set1(m.B[s * states + n]))));
    }
  }
}

// One state of one vector, backwards over a tile.
static inline void retreat(const float* decay, const BackwardBuffers& m, int64_t n, int64_t states, int steps, float* grad,
                           float* dA) {
  const Vec a = load(decay + n * kWidth);
  Vec g = load(grad + n * kWidth), da = load(dA + n * kWidth);
  for (int s = steps - 1; s >= 0; --s) {
    const int64_t at = (s * states + n) * kWidth;
    const Vec dy = load(m.dy + s * kWidth), e = load(m.decays + at);
    store(m.dC + at, fma(dy, load(m.states + at + states * kWidth), load(m.dC + at)));
    g = fma(dy, set1(m.C[s * states + n]), g);
    store(m.dB + at, fma(g, load(m.dtu + s * kWidth), load(m.dB + at)));
    const Vec inner = mul(g, mul(e, load(m.states + at)));
    store(m.through_decay + s * kWidth, fma(inner, a, load(m.through_decay + s * kWidth)));
    store(m.through_input + s * kWidth, fma(g, set1(m.B[s * states + n]), load(m.through_input + s * kWidth)));
    da = fma(inner, load(m.dt + s * kWidth), da);
    g = mul(g, e);
  }
  store(grad + n * kWidth, g);
  store(dA + n * kWidth, da);
}

// d dt / d delta at a tile's step.
template <typename T>
static inline Vec slope(const Rows<T>& rows, const Weights& weights, int64_t channel, int lanes, int32_t position) {
  const T* delta = typed<T>(rows.p.delta) + rows.delta(position) + channel;
  return sigmoid(add(load_part(delta, lanes), load(weights.bias + channel)));
}

template <typename T>
class Backward {
 public:
  Backward(const Problem& p, const void* dy, const Gradients& out, const Shares& shares, int64_t b, int64_t first,
           int64_t channels, float* memory)
      : p_(p), dy_(typed<T>(dy)), out_(out), shares_(shares), b_(b), first_(first), channels_(channels),
        weights_(p, channels, memory), m_(p, channels, memory + Weights::floats(p, channels)) {}

  void run() {
    const FlushDenormals flush;
    const size_t all_states = static_cast<size_t>(padded() * p_.states) * sizeof(float);
    if (shared_u()) memset(m_.du, 0, static_cast<size_t>(p_.positions * padded()) * sizeof(float));
    for (int64_t g = 0; g < p_.directions; ++g) {
      const Rows<T> rows{p_, b_, g, first_};
      weights_.read(p_, g, first_, channels_);
      if (p_.steps < p_.positions) clear_unvisited(rows);
      save_checkpoints(rows);
      memset(m_.grad, 0, all_states);
      memset(m_.dA, 0, all_states);
      memset(m_.dD, 0, static_cast<size_t>(padded()) * sizeof(float));
      memset(m_.dbias, 0, static_cast<size_t>(padded()) * sizeof(float));
      for (int64_t tile = tiles(p_) - 1; tile >= 0; --tile) walk_back(rows, tile);
      write_weight_shares(g);
    }
    if (shared_u() && out_.u != nullptr) write_du();
  }

 private:
  int64_t padded() const { return vectors(channels_) * kWidth; }
  bool shared_u() const { return p_.u_directions == 1; }
  int lanes(int64_t channel) const {
    return static_cast<int>(channels_ - channel < kWidth ? channels_ - channel : kWidth);
  }
  int steps_of(int64_t tile) const {
    const int64_t left = p_.steps - tile * kTile;
    return static_cast<int>(left < kTile ? left : kTile);
  }
  const int32_t* positions_of(int64_t g, int64_t tile) const { return p_.order + g * p_.steps + tile * kTile; }
  float* checkpoint(int64_t tile, int64_t channel) const {
    return m_.checkpoints + (tile * padded() + channel) * p_.states;
  }

  // Positions that a partial order leaves out have no gradient through this direction.
  void clear_unvisited(const Rows<T>& rows) {
    const size_t bytes = static_cast<size_t>(channels_) * sizeof(T);
    for (int32_t position = 0; position < p_.positions; ++position) {
      if (out_.delta != nullptr) memset(static_cast<T*>(out_.delta) + rows.delta(position), 0, bytes);
      if (out_.u != nullptr && !shared_u()) memset(static_cast<T*>(out_.u) + rows.u(position), 0, bytes);
    }
  }

  // dt, u and dt * u of one vector over a tile; whether exp2_product is safe on them.
  bool read_tile(const Rows<T>& rows, int64_t channel, const int32_t* positions, int steps) {
    const bool in_range =
        read_steps(rows, weights_, channel / kWidth, lanes(channel), positions, steps, m_.dt, m_.u);
    for (int s = 0; s < steps; ++s) store(m_.dtu + s * kWidth, mul(load(m_.dt + s * kWidth), load(m_.u + s * kWidth)));
    return in_range;
  }

  void save_checkpoints(const Rows<T>& rows) {
    memset(m_.state, 0, static_cast<size_t>(padded() * p_.states) * sizeof(float));
    for (int64_t tile = 0; tile < tiles(p_); ++tile) {
      memcpy(checkpoint(tile, 0), m_.state, static_cast<size_t>(padded() * p_.states) * sizeof(float));
      if (tile + 1 == tiles(p_)) break;
      const int steps = steps_of(tile);
      const int32_t* positions = positions_of(rows.g, tile);
      read_projection(rows, p_.B, positions, steps, m_.B);
      for (int64_t channel = 0; channel < padded(); channel += kWidth) {
        const bool in_range = read_tile(rows, channel, positions, steps);
        const float* decay = weights_.decay + channel * p_.states;
        float* h = m_.state + channel * p_.states;
        // The output is not wanted: B stands in for C, and the sum goes to a buffer that is overwritten.
        if (in_range) {
          advance_all<false>(decay, h, m_.dt, m_.dtu, m_.B, m_.B, p_.states, steps, m_.through_decay);
        } else {
          advance_all<true>(decay, h, m_.dt, m_.dtu, m_.B, m_.B, p_.states, steps, m_.through_decay);
        }
      }
    }
  }

  void walk_back(const Rows<T>& rows, int64_t tile) {
    const int steps = steps_of(tile);
    const int32_t* positions = positions_of(rows.g, tile);
    const size_t in_tile = static_cast<size_t>(steps * p_.states * kWidth) * sizeof(float);
    read_projection(rows, p_.B, positions, steps, m_.B);
    read_projection(rows, p_.C, positions, steps, m_.C);
    memset(m_.dB, 0, in_tile);
    memset(m_.dC, 0, in_tile);
    for (int64_t channel = 0; channel < padded(); channel += kWidth) {
      const bool in_range = read_tile(rows, channel, positions, steps);
      const float* decay = weights_.decay + channel * p_.states;
      if (in_range) {
        replay<false>(decay, checkpoint(tile, channel), m_, p_.states, steps);
      } else {
        replay<true>(decay, checkpoint(tile, channel), m_, p_.states, steps);
      }
      for (int s = 0; s < steps; ++s) {
        store(m_.dy + s * kWidth, load_part(dy_ + rows.y(positions[s]) + channel, lanes(channel)));
        store(m_.through_decay + s * kWidth, set1(0.0f));
        store(m_.through_input + s * kWidth, set1(0.0f));
      }
      for (int64_t n = 0; n < p_.states; ++n) {
        retreat(decay, m_, n, p_.states, steps, m_.grad + channel * p_.states, m_.dA + channel * p_.states);
      }
      write_steps(rows, channel, positions, steps);
    }
    for (int s = 0; s < steps; ++s) {
      const int64_t row = rows.state(positions[s]) - b_ * p_.positions * p_.directions * p_.states;
      for (int64_t n = 0; n < p_.states; ++n) {
        shares_.dB[row + n] = sum(load(m_.dB + (s * p_.states + n) * kWidth));
        shares_.dC[row + n] = sum(load(m_.dC + (s * p_.states + n) * kWidth));
      }
    }
  }

  // ddelta and du of one vector's tile, and its part of dD and dbias.
  void write_steps(const Rows<T>& rows, int64_t channel, const int32_t* positions, int steps) {
    const Vec skip = load(weights_.skip + channel);
    Vec dD = load(m_.dD + channel), dbias = load(m_.dbias + channel);
    for (int s = 0; s < steps; ++s) {
      const Vec dy = load(m_.dy + s * kWidth), u = load(m_.u + s * kWidth);
      const Vec input = load(m_.through_input + s * kWidth);
      Vec ddelta = fma(u, input, mul(load(m_.through_decay + s * kWidth), set1(kLn2)));
      if (p_.softplus) ddelta = mul(ddelta, slope(rows, weights_, channel, lanes(channel), positions[s]));
      const Vec du = fma(load(m_.dt + s * kWidth), input, mul(skip, dy));
      dD = fma(dy, u, dD);
      dbias = add(dbias, ddelta);
      if (out_.delta != nullptr) {
        store_part(static_cast<T*>(out_.delta) + rows.delta(positions[s]) + channel, ddelta, lanes(channel));
      }
      if (shared_u()) {
        float* to = m_.du + positions[s] * padded() + channel;
        store(to, add(du, load(to)));
      } else if (out_.u != nullptr) {
        store_part(static_cast<T*>(out_.u) + rows.u(positions[s]) + channel, du, lanes(channel));
      }
    }
    store(m_.dD + channel, dD);
    store(m_.dbias + channel, dbias);
  }

  void write_weight_shares(int64_t g) {
    for (int64_t i = 0; i < channels_; ++i) {
      const int64_t row = g * p_.channels + first_ + i, vector = i / kWidth, lane = i % kWidth;
      for (int64_t n = 0; n < p_.states; ++n) {
        shares_.dA[row * p_.states + n] = m_.dA[(vector * p_.states + n) * kWidth + lane];
      }
      shares_.dD[row] = m_.dD[i];
      shares_.dbias[row] = m_.dbias[i];
    }
  }

  void write_du() {
    const Rows<T> rows{p_, b_, 0, first_};
    for (int32_t position = 0; position < p_.positions; ++position) {
      for (int64_t channel = 0; channel < channels_; channel += kWidth) {
        store_part(static_cast<T*>(out_.u) + rows.u(position) + channel, load(m_.du + position * padded() + channel),
                   lanes(channel));
      }
    }
  }

  const Problem& p_;
  const T* const dy_;
  const Gradients& out_;
  const Shares& shares_;
  const int64_t b_, first_, channels_;
  Weights weights_;
  BackwardBuffers m_;
};

}  // namespace EDGEMAMBA_ISA_NAMESPACE
}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_BACKWARD_H
