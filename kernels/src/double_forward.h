// The operator in float64, as plain loops: for gradient checks and golden vectors, where speed does not matter.
#ifndef EDGEMAMBA_SRC_DOUBLE_H
#define EDGEMAMBA_SRC_DOUBLE_H

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "executor.h"
#include "problem.h"

namespace edgemamba {

// One (batch, direction, channel): the walk along `order`.
class Walk {
 public:
  Walk(const Problem& p, int64_t b, int64_t g, int64_t d)
      : p_(p), b_(b), g_(g), d_(d), A(static_cast<const double*>(p.A) + (g * p.channels + d) * p.states) {}

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

  double u(int64_t position) const { return at(p_.u, u_index(position)); }
  double B(int64_t position, int64_t n) const { return at(p_.B, state_index(position) + n); }
  double C(int64_t position, int64_t n) const { return at(p_.C, state_index(position) + n); }
  double D() const { return static_cast<const double*>(p_.D)[g_ * p_.channels + d_]; }
  double biased_delta(int64_t position) const {
    return at(p_.delta, delta_index(position)) + static_cast<const double*>(p_.delta_bias)[g_ * p_.channels + d_];
  }
  double dt(int64_t position) const {
    const double x = biased_delta(position);
    return p_.softplus && !(x > 20) ? std::log1p(std::exp(x)) : x;
  }
  // d dt / d delta
  double dt_slope(int64_t position) const {
    const double x = biased_delta(position);
    return p_.softplus && !(x > 20) ? 1 / (1 + std::exp(-x)) : 1.0;
  }

 private:
  static double at(const void* data, int64_t index) { return static_cast<const double*>(data)[index]; }

  const Problem& p_;
  const int64_t b_, g_, d_;

 public:
  const double* const A;
};

// Runs `body(index)` for each index < count on at most so many threads; an allocation failure in any of them becomes a
// status.
template <typename Body>
int run_tasks(const em_executor* executor, int threads, int64_t count, const Body& body) {
  std::atomic<bool> out_of_memory{false};
  auto guarded = [&](size_t index) {
    try {
      body(static_cast<int64_t>(index));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  if (!parallel_for(executor, threads, static_cast<size_t>(count), guarded)) return EM_INTERNAL;
  return out_of_memory ? EM_OUT_OF_MEMORY : EM_OK;
}

inline int double_forward(const Problem& p, double* y, const em_executor* executor) {
  return run_tasks(executor, thread_count(executor), p.batch * p.channels, [&](int64_t index) {
    const int64_t b = index / p.channels, d = index % p.channels;
    std::vector<double> sum(static_cast<size_t>(p.positions), 0.0), h(static_cast<size_t>(p.states));
    for (int64_t g = 0; g < p.directions; ++g) {
      const Walk walk(p, b, g, d);
      h.assign(h.size(), 0.0);
      for (int64_t s = 0; s < p.steps; ++s) {
        const int64_t position = walk.position(s);
        const double dt = walk.dt(position), u = walk.u(position);
        double out = walk.D() * u;
        for (int64_t n = 0; n < p.states; ++n) {
          double& state = h[static_cast<size_t>(n)];
          state = std::exp(dt * walk.A[n]) * state + dt * walk.B(position, n) * u;
          out += walk.C(position, n) * state;
        }
        sum[static_cast<size_t>(position)] += out;
      }
    }
    for (int64_t i = 0; i < p.positions; ++i) {
      y[(b * p.positions + i) * p.channels + d] = sum[static_cast<size_t>(i)];
    }
  });
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_DOUBLE_H
