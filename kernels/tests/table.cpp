#include "table.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

double tolerance(int32_t dtype) {
  switch (dtype) {
    case EM_F64: return 1e-12;
    case EM_F16: return 1.5e-3;
    case EM_BF16: return 1.2e-2;
    default: return 5e-6;
  }
}

void compare(const Case& c, const char* what, const std::vector<double>& found, const std::vector<double>& expected,
             double allowed) {
  if (found.size() != expected.size()) return fail("%s: %s has %zu values", c.name().c_str(), what, found.size());
  double largest = 1, worst = 0;
  for (double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size() && !std::isnan(worst); ++i) {
    const double error = std::fabs(found[i] - expected[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
  }
  if (!(worst <= allowed * largest)) fail("%s: %s is off by %g of %g", c.name().c_str(), what, worst, largest);
}

void for_random_shapes(const std::vector<int32_t>& dtypes, const std::function<void(Case&&)>& check) {
  std::mt19937 generator(7);
  const auto one_of = [&](std::initializer_list<int64_t> values) {
    return values.begin()[generator() % values.size()];
  };
  for (unsigned seed = 0; seed < 60; ++seed) {
    Extents e{one_of({0, 1, 2}),
              one_of({1, 2, 9, 31, 32, 33, 70, 129}),
              1,
              one_of({1, 2, 3, 4}),
              one_of({1, 3, 8, 15, 16, 17, 33, 64, 70, 100, 140}),
              one_of({1, 2, 4, 5, 8, 13, 16, 20, 64}),
              0};
    e.Gu = one_of({1, e.G});
    e.S = one_of({e.P, e.P, e.P / 2, 0});
    for (int32_t dtype : dtypes) {
      // Without softplus the step itself, positive as in a model: else the states grow without bound.
      const bool softplus = seed % 5 != 0;
      check(Case(e, dtype, seed, softplus ? -1 : 0.5, softplus ? 1 : 0.1, 1, softplus));
    }
  }
}

void for_corners(int64_t states, const std::function<void(Case&&, double slack)>& check) {
  const Extents e{1, 40, 1, 2, 21, states, 40};
  check(Case(e, EM_F32, 1, 0, 40), 1);                                         // steps from e^-100 to 100
  check(Case(e, EM_F32, 2, -1, 1, 1e4), 1);                                    // the state forgets at once
  check(Case(e, EM_F32, 3, -14, 1), 1);                                        // softplus as small as e^x
  check(Case(e, EM_F32, 4, 3, 2, 10), 4);                                      // exponents past float32's range
  check(Case({1, 12, 1, 2, 21, states, 12}, EM_F32, 5, 0, 0.3, 1, false), 1);  // growth and decay
  check(Case({1, 600, 1, 1, 5, states, 600}, EM_F32, 6, -5, 1), 1);            // a long memory
}

void check_overflow_and_nan(int64_t steps, int64_t states, const std::function<std::vector<double>(Case*)>& forward) {
  constexpr int64_t kNanStep = 5, kNanFirst = 11, kNanLast = 12, kForgets = 13, kOverflows = 20;  // channels
  const Extents e{1, steps, 1, 1, 37, states, steps};
  Case c(e, EM_F32, 1, 0, 0, 1, false);
  std::vector<double> delta(static_cast<size_t>(e.P * e.D), 0.1), A(static_cast<size_t>(e.D * e.N), -1.0);
  const auto at = [](int64_t row, int64_t width, int64_t column) { return static_cast<size_t>(row * width + column); };
  delta[at(2, e.D, kNanStep)] = std::nan("");
  for (int64_t s = 0; s < e.P; ++s) delta[at(s, e.D, kOverflows)] = -500;  // exp(500) overflows
  A[at(kNanFirst, e.N, 0)] = A[at(kNanLast, e.N, e.N - 1)] = std::nan("");
  for (int64_t n = 0; n < e.N; ++n) A[at(kForgets, e.N, n)] = -std::numeric_limits<double>::infinity();
  c.delta = Tensor(EM_F32, {1, e.P, 1, e.D}, delta);
  c.A = Tensor(EM_F32, {1, e.D, e.N}, A);
  for (int32_t s = 0; s < e.P; ++s) c.order[static_cast<size_t>(s)] = s;
  std::vector<double> y = forward(&c), reference = c.reference_forward();
  if (y.size() != reference.size()) return fail("overflow: %s", c.message);
  for (int64_t d = 0; d < e.D; ++d) {
    const double last = y[at(e.P - 1, e.D, d)];
    const bool finite = d != kNanStep && d != kNanFirst && d != kNanLast && d != kOverflows;
    if (std::isfinite(last) != finite) fail("overflow: channel %d ends in %g", static_cast<int>(d), last);
    for (int64_t s = 0; !finite && s < e.P; ++s) y[at(s, e.D, d)] = reference[at(s, e.D, d)] = 0;
  }
  compare(c, "y beside overflow", y, reference, tolerance(EM_F32));
}
