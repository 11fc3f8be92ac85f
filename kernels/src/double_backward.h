// Gradients of sum(y * dy) in float64, as plain loops; the formulas are those of edgemamba.runtime.reference.
#ifndef EDGEMAMBA_SRC_DOUBLE_BACKWARD_H
#define EDGEMAMBA_SRC_DOUBLE_BACKWARD_H

#include <algorithm>

#include "double_forward.h"

namespace edgemamba {

// The states that the backward walk needs, from a checkpoint at every `stride`-th step: O(sqrt(S) * N) values.
class Checkpoints {
 public:
  explicit Checkpoints(const Problem& p)
      : n_(p.states),
        stride_(std::max<int64_t>(16, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(p.steps)))))),
        saved_(static_cast<size_t>((p.steps / stride_ + 1) * n_)),
        recent_(static_cast<size_t>((stride_ + 1) * n_)) {}

  int64_t stride() const { return stride_; }

  void record(const Problem& p, const Walk& walk) {
    std::fill(saved_.begin(), saved_.begin() + n_, 0.0);
    for (int64_t first = 0; first + stride_ < p.steps; first += stride_) {
      recompute(p, walk, first);
      std::copy_n(&recent_[static_cast<size_t>(stride_ * n_)], n_,
                  &saved_[static_cast<size_t>((first / stride_ + 1) * n_)]);
    }
  }

  // Afterwards before(s) and after(s) hold for first <= s < first + stride.
  void recompute(const Problem& p, const Walk& walk, int64_t first) {
    first_ = first;
    std::copy_n(&saved_[static_cast<size_t>(first / stride_ * n_)], n_, &recent_[0]);
    for (int64_t s = first; s < std::min(first + stride_, p.steps); ++s) {
      const int64_t position = walk.position(s);
      const double dt = walk.dt(position), u = walk.u(position);
      const double* h = before(s);
      double* out = &recent_[static_cast<size_t>((s + 1 - first_) * n_)];
      for (int64_t n = 0; n < n_; ++n) out[n] = std::exp(dt * walk.A[n]) * h[n] + dt * walk.B(position, n) * u;
    }
  }

  const double* before(int64_t s) const { return &recent_[static_cast<size_t>((s - first_) * n_)]; }
  const double* after(int64_t s) const { return before(s + 1); }

 private:
  const int64_t n_, stride_;
  int64_t first_ = 0;
  std::vector<double> saved_, recent_;
};

inline void store_gradient(void* out, const std::vector<double>& values, int64_t offset) {
  if (out != nullptr) std::copy(values.begin(), values.end(), static_cast<double*>(out) + offset);
}

// One task a batch element; what is summed over the batch (A, D, delta_bias) is kept apart for each and added in order
// at the end, so that the result does not depend on the threads.
inline int double_backward(const Problem& p, const double* dy, const Gradients& out, const em_executor* executor) {
  const size_t weights = static_cast<size_t>(p.directions * p.channels);
  const size_t batch = static_cast<size_t>(p.batch), states = static_cast<size_t>(p.states);
  std::vector<double> all_dA(batch * weights * states, 0.0), all_dD(batch * weights, 0.0),
      all_dbias(batch * weights, 0.0);

  const int status = run_tasks(executor, thread_count(executor), p.batch, [&](int64_t b) {
    const int64_t u_size = p.positions * p.u_directions * p.channels,
                  state_size = p.positions * p.directions * p.states;
    std::vector<double> du(static_cast<size_t>(u_size), 0.0),
        ddelta(static_cast<size_t>(p.positions * p.directions * p.channels), 0.0);
    std::vector<double> dB(static_cast<size_t>(state_size), 0.0), dC(static_cast<size_t>(state_size), 0.0), gh(states);
    Checkpoints states_at(p);
    for (int64_t g = 0; g < p.directions; ++g) {
      for (int64_t d = 0; d < p.channels; ++d) {
        const Walk walk(p, b, g, d);
        const size_t weight = static_cast<size_t>(b) * weights + static_cast<size_t>(g * p.channels + d);
        double* dA = &all_dA[weight * states];
        states_at.record(p, walk);
        gh.assign(states, 0.0);
        for (int64_t s = p.steps - 1, first = p.steps; s >= 0; --s) {
          if (s < first) states_at.recompute(p, walk, first = s / states_at.stride() * states_at.stride());
          const int64_t position = walk.position(s);
          const int64_t row = walk.state_index(position) - b * state_size;
          const double dt = walk.dt(position), u = walk.u(position), dout = dy[walk.y_index(position)];
          const double* h = states_at.after(s);
          const double* previous = states_at.before(s);
          double ddt = 0, du_here = walk.D() * dout;
          for (int64_t n = 0; n < p.states; ++n) {
            double& grad = gh[static_cast<size_t>(n)];  // dL/dh_s
            const double decay = std::exp(dt * walk.A[n]), b_n = walk.B(position, n);
            grad += dout * walk.C(position, n);
            dC[static_cast<size_t>(row + n)] += dout * h[n];
            dB[static_cast<size_t>(row + n)] += grad * dt * u;
            const double through_decay = grad * decay * previous[n];
            ddt += through_decay * walk.A[n] + grad * b_n * u;
            du_here += grad * dt * b_n;
            dA[n] += through_decay * dt;
            grad *= decay;
          }
          const double ddelta_here = ddt * walk.dt_slope(position);
          du[static_cast<size_t>(walk.u_index(position) - b * u_size)] += du_here;
          ddelta[static_cast<size_t>(walk.delta_index(position) - b * p.positions * p.directions * p.channels)] =
              ddelta_here;
          all_dD[weight] += dout * u;
          all_dbias[weight] += ddelta_here;
        }
      }
    }
    store_gradient(out.u, du, b * u_size);
    store_gradient(out.delta, ddelta, b * static_cast<int64_t>(ddelta.size()));
    store_gradient(out.B, dB, b * state_size);
    store_gradient(out.C, dC, b * state_size);
  });
  if (status != EM_OK) return status;

  const auto add_batch = [&](void* result, const std::vector<double>& all, size_t size) {
    if (result == nullptr) return;
    std::vector<double> sum(size, 0.0);
    for (size_t i = 0; i < all.size(); ++i) sum[i % size] += all[i];
    store_gradient(result, sum, 0);
  };
  add_batch(out.A, all_dA, weights * states);
  add_batch(out.D, all_dD, weights);
  add_batch(out.delta_bias, all_dbias, weights);
  return EM_OK;
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_DOUBLE_BACKWARD_H
