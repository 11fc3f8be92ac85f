// Gradients of sum(y * dy) as plain loops; the formulas are those of edgemamba.runtime.reference.
#ifndef EDGEMAMBA_SRC_PORTABLE_BACKWARD_H
#define EDGEMAMBA_SRC_PORTABLE_BACKWARD_H

#include <algorithm>

#include "portable.h"

namespace edgemamba {

// The states that the backward walk needs, from a checkpoint at every `stride`-th step: O(sqrt(S) * N) values.
template <typename Real, typename Storage>
class Checkpoints {
 public:
  Checkpoints(const Problem& p)
      : n_(p.states),
        stride_(std::max<int64_t>(16, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(p.steps)))))),
        saved_(static_cast<size_t>((p.steps / stride_ + 1) * n_)),
        recent_(static_cast<size_t>((stride_ + 1) * n_)) {}

  int64_t stride() const { return stride_; }

  void record(const Problem& p, const Walk<Real, Storage>& walk) {
    std::fill(saved_.begin(), saved_.begin() + n_, Real(0));
    for (int64_t first = 0; first + stride_ < p.steps; first += stride_) {
      recompute(p, walk, first);
      std::copy_n(&recent_[static_cast<size_t>(stride_ * n_)], n_, &saved_[static_cast<size_t>((first / stride_ + 1) * n_)]);
    }
  }

  // Afterwards before(s) and after(s) hold for first <= s < first + stride.
  void recompute(const Problem& p, const Walk<Real, Storage>& walk, int64_t first) {
    first_ = first;
    std::copy_n(&saved_[static_cast<size_t>(first / stride_ * n_)], n_, &recent_[0]);
    for (int64_t s = first; s < std::min(first + stride_, p.steps); ++s) {
      const int64_t position = walk.position(s);
      const Real dt = walk.dt(position), u = walk.u(position);
      const Real* h = before(s);
      Real* out = &recent_[static_cast<size_t>((s + 1 - first_) * n_)];
      for (int64_t n = 0; n < n_; ++n) out[n] = std::exp(dt * walk.A[n]) * h[n] + dt * walk.B(position, n) * u;
    }
  }

  const Real* before(int64_t s) const { return &recent_[static_cast<size_t>((s - first_) * n_)]; }
  const Real* after(int64_t s) const { return before(s + 1); }

 private:
  const int64_t n_, stride_;
  int64_t first_ = 0;
  std::vector<Real> saved_, recent_;
};

template <typename Storage, typename Real>
void store_gradient(void* out, const std::vector<Real>& values, int64_t offset) {
  if (out == nullptr) return;
  for (size_t i = 0; i < values.size(); ++i) from_float(values[i], &static_cast<Storage*>(out)[offset + static_cast<int64_t>(i)]);
}

// One task a batch element; what is summed over the batch (A, D, delta_bias) is kept apart for each and added in order
// at the end, so that the result does not depend on the threads.
template <typename Real, typename Storage>
int portable_backward(const Problem& p, const Storage* dy, const Gradients& out, const em_executor* executor) {
  const size_t weights = static_cast<size_t>(p.directions * p.channels);
  const size_t batch = static_cast<size_t>(p.batch), states = static_cast<size_t>(p.states);
  std::vector<Real> all_dA(batch * weights * states, Real(0)), all_dD(batch * weights, Real(0)), all_dbias(batch * weights, Real(0));

  const int status = run_tasks(executor, p.batch, [&](int64_t b) {
    const int64_t u_size = p.positions * p.u_directions * p.channels, state_size = p.positions * p.directions * p.states;
    std::vector<Real> du(static_cast<size_t>(u_size), Real(0)), ddelta(static_cast<size_t>(p.positions * p.directions * p.channels), Real(0));
    std::vector<Real> dB(static_cast<size_t>(state_size), Real(0)), dC(static_cast<size_t>(state_size), Real(0)), gh(states);
    Checkpoints<Real, Storage> states_at(p);
    for (int64_t g = 0; g < p.directions; ++g) {
      for (int64_t d = 0; d < p.channels; ++d) {
        const Walk<Real, Storage> walk(p, b, g, d);
        const size_t weight = static_cast<size_t>(b) * weights + static_cast<size_t>(g * p.channels + d);
        Real* dA = &all_dA[weight * states];
        states_at.record(p, walk);
        gh.assign(states, Real(0));
        for (int64_t s = p.steps - 1, first = p.steps; s >= 0; --s) {
          if (s < first) states_at.recompute(p, walk, first = s / states_at.stride() * states_at.stride());
          const int64_t position = walk.position(s);
          const int64_t row = walk.state_index(position) - b * state_size;
          const Real dt = walk.dt(position), u = walk.u(position), dout = to_float(dy[walk.y_index(position)]);
          const Real* h = states_at.after(s);
          const Real* previous = states_at.before(s);
          Real ddt = 0, du_here = walk.D() * dout;
          for (int64_t n = 0; n < p.states; ++n) {
            Real& grad = gh[static_cast<size_t>(n)];  // dL/dh_s
            const Real decay = std::exp(dt * walk.A[n]), b_n = walk.B(position, n);
            grad += dout * walk.C(position, n);
            dC[static_cast<size_t>(row + n)] += dout * h[n];
            dB[static_cast<size_t>(row + n)] += grad * dt * u;
            const Real through_decay = grad * decay * previous[n];
            ddt += through_decay * walk.A[n] + grad * b_n * u;
            du_here += grad * dt * b_n;
            dA[n] += through_decay * dt;
            grad *= decay;
          }
          const Real ddelta_here = ddt * walk.dt_slope(position);
          du[static_cast<size_t>(walk.u_index(position) - b * u_size)] += du_here;
          ddelta[static_cast<size_t>(walk.delta_index(position) - b * p.positions * p.directions * p.channels)] = ddelta_here;
          all_dD[weight] += dout * u;
          all_dbias[weight] += ddelta_here;
        }
      }
    }
    store_gradient<Storage>(out.u, du, b * u_size);
    store_gradient<Storage>(out.delta, ddelta, b * static_cast<int64_t>(ddelta.size()));
    store_gradient<Storage>(out.B, dB, b * state_size);
    store_gradient<Storage>(out.C, dC, b * state_size);
  });
  if (status != EM_OK) return status;

  const auto add_batch = [&](void* result, const std::vector<Real>& all, size_t size) {
    if (result == nullptr) return;
    std::vector<Real> sum(size, Real(0));
    for (size_t i = 0; i < all.size(); ++i) sum[i % size] += all[i];
    store_gradient<Real>(result, sum, 0);
  };
  add_batch(out.A, all_dA, weights * states);
  add_batch(out.D, all_dD, weights);
  add_batch(out.delta_bias, all_dbias, weights);
  return EM_OK;
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_PORTABLE_BACKWARD_H
