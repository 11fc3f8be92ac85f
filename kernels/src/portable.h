// The operator as plain loops over channels, in any arithmetic: the float64 path.
#ifndef EDGEMAMBA_SRC_PORTABLE_H
#define EDGEMAMBA_SRC_PORTABLE_H

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "executor.h"
#include "half.h"
#include "problem.h"

namespace edgemamba {

[[maybe_unused]] static double to_float(double value) { return value; }
[[maybe_unused]] static void from_float(double value, double* out) { *out = value; }

// One (batch, direction, channel): the walk along `order`.
template <typename Real, typename Storage>
class Walk {
 public:
  Walk(const Problem& p, int64_t b, int64_t g, int64_t d)
      : p_(p), b_(b), g_(g), d_(d), A(static_cast<const Real*>(p.A) + (g * p.channels + d) * p.states) {}

  int64_t position(int64_t s) const { return p_.order[g_ * p_.steps + s]; }
  int64_t u_index(int64_t position) const {
    return ((b_ * p_.positions + position) * p_.u_directions + (p_.u_directions == 1 ? 0 : g_)) * p_.channels + d_;
  }
  int64_t delta_index(int64_t position) const {
    return ((b_ * p_.positions + position) * p_.directions + g_) * p_.channels + d_;
  }
  int64_t state_index(int64_t position) const {
    return ((b_ * p_.positions + position) * p_.directions + g_) * p_.states;
  }
  int64_t y_index(int64_t position) const { return (b_ * p_.positions + position) * p_.channels + d_; }

  Real u(int64_t position) const { return at(p_.u, u_index(position)); }
  Real B(int64_t position, int64_t n) const { return at(p_.B, state_index(position) + n); }
  Real C(int64_t position, int64_t n) const { return at(p_.C, state_index(position) + n); }
  Real D() const { return static_cast<const Real*>(p_.D)[g_ * p_.channels + d_]; }
  Real biased_delta(int64_t position) const {
    return at(p_.delta, delta_index(position)) + static_cast<const Real*>(p_.delta_bias)[g_ * p_.channels + d_];
  }
  Real dt(int64_t position) const {
    const Real x = biased_delta(position);
    return p_.softplus && !(x > 20) ? std::log1p(std::exp(x)) : x;
  }
  // d dt / d delta
  Real dt_slope(int64_t position) const {
    const Real x = biased_delta(position);
    return p_.softplus && !(x > 20) ? 1 / (1 + std::exp(-x)) : Real(1);
  }

 private:
  static Real at(const void* data, int64_t index) { return to_float(static_cast<const Storage*>(data)[index]); }

  const Problem& p_;
  const int64_t b_, g_, d_;

 public:
  const Real* const A;
};

// Runs `body(index)` for each index < count on the executor; an allocation failure in any of them becomes a status.
template <typename Body>
int run_tasks(const em_executor* executor, int64_t count, const Body& body) {
  std::atomic<bool> out_of_memory{false};
  auto guarded = [&](size_t index) {
    try {
      body(static_cast<int64_t>(index));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  if (!parallel_for(executor, thread_count(executor), static_cast<size_t>(count), guarded)) return EM_INTERNAL;
  return out_of_memory ? EM_OUT_OF_MEMORY : EM_OK;
}

template <typename Real, typename Storage>
int portable_forward(const Problem& p, Storage* y, const em_executor* executor) {
  return run_tasks(executor, p.batch * p.channels, [&](int64_t index) {
    const int64_t b = index / p.channels, d = index % p.channels;
    std::vector<Real> sum(static_cast<size_t>(p.positions), Real(0)), h(static_cast<size_t>(p.states));
    for (int64_t g = 0; g < p.directions; ++g) {
      const Walk<Real, Storage> walk(p, b, g, d);
      h.assign(h.size(), Real(0));
      for (int64_t s = 0; s < p.steps; ++s) {
        const int64_t position = walk.position(s);
        const Real dt = walk.dt(position), u = walk.u(position);
        Real out = walk.D() * u;
        for (int64_t n = 0; n < p.states; ++n) {
          Real& state = h[static_cast<size_t>(n)];
          state = std::exp(dt * walk.A[n]) * state + dt * walk.B(position, n) * u;
          out += walk.C(position, n) * state;
        }
        sum[static_cast<size_t>(position)] += out;
      }
    }
    for (int64_t i = 0; i < p.positions; ++i) {
      from_float(sum[static_cast<size_t>(i)], &y[(b * p.positions + i) * p.channels + d]);
    }
  });
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_PORTABLE_H
