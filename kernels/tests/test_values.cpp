// Forward and gradients against double loops, on random shapes and on the corners of the arithmetic.
#include <cmath>
#include <limits>

#include "case.h"
#include "check.h"

namespace {

constexpr const char* kGradients[] = {"du", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias"};

// Relative to the largest value: rounding of one result, and of float32 sums.
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
  double largest = 1, worst = 0;
  for (double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(found[i] - expected[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
    if (std::isnan(worst)) break;
  }
  if (!(worst <= allowed * largest)) fail("%s: %s is off by %g of %g", c.name().c_str(), what, worst, largest);
}

void check(Case&& c, double slack = 1) {
  const em_executor threads = {static_cast<int32_t>(1 + c.extents.D % 3), nullptr, nullptr};
  if (c.forward(&threads) != EM_OK) return fail("%s: %s", c.name().c_str(), c.message);
  compare(c, "y", c.y.values(), c.reference_forward(), slack * tolerance(c.dtype));
  if (c.backward(&threads) != EM_OK) return fail("%s backward: %s", c.name().c_str(), c.message);
  const auto expected = c.reference_backward();
  for (size_t i = 0; i < expected.size(); ++i) {
    compare(c, kGradients[i], c.gradients[i].values(), expected[i], slack * tolerance(c.dtype));
  }
}

void random_shapes() {
  std::mt19937 generator(7);
  const auto one_of = [&](std::initializer_list<int64_t> values) {
    return values.begin()[generator() % values.size()];
  };
  for (unsigned seed = 0; seed < 60; ++seed) {
    Extents e{one_of({0, 1, 2}),
              one_of({1, 2, 9, 31, 32, 33, 70, 129}),
              1,
              one_of({1, 2, 3, 4}),
              one_of({1, 3, 8, 15, 16, 17, 33, 64, 70, 100}),
              one_of({1, 2, 4, 5, 8, 13, 16, 64}),
              0};
    e.Gu = one_of({1, e.G});
    e.S = one_of({e.P, e.P, e.P / 2, 0});
    for (int32_t dtype : {EM_F32, EM_F16, EM_BF16, EM_F64}) {
      // Without softplus the step itself, positive as in a model: else the states grow without bound.
      const bool softplus = seed % 5 != 0;
      check(Case(e, dtype, seed, softplus ? -1 : 0.5, softplus ? 1 : 0.1, 1, softplus));
    }
  }
}

void corners() {
  const Extents e{1, 40, 1, 2, 21, 8, 40};
  check(Case(e, EM_F32, 1, 0, 40));                                    // steps from e^-100 to 100
  check(Case(e, EM_F32, 2, -1, 1, 1e4));                               // the state forgets at once
  check(Case(e, EM_F32, 3, -14, 1));                                   // softplus as small as e^x
  check(Case(e, EM_F32, 4, 3, 2, 10), 4);                              // some exponents past the range of float32
  check(Case({1, 12, 1, 2, 21, 8, 12}, EM_F32, 5, 0, 0.3, 1, false));  // growth and decay
}

// A value that overflows or is NaN must come out as that, and only in its own channel; its neighbours, which then take
// the kernel's general path too, stay exact.
void overflow_and_nan() {
  const Extents e{1, 6, 1, 1, 37, 4, 6};
  Case c(e, EM_F32, 1, 0, 0, 1, false);
  std::vector<double> delta(static_cast<size_t>(e.P * e.D), 0.1), A(static_cast<size_t>(e.D * e.N), -1.0);
  delta[2 * 37 + 5] = std::numeric_limits<double>::quiet_NaN();
  for (int64_t s = 0; s < e.P; ++s) delta[static_cast<size_t>(s * 37 + 20)] = -500;  // exp(500) overflows
  A[11 * 4 + 1] = std::numeric_limits<double>::quiet_NaN();
  A[12 * 4 + 1] = -std::numeric_limits<double>::infinity();  // forgets
  c.delta = Tensor(EM_F32, {1, e.P, 1, e.D}, delta);
  c.A = Tensor(EM_F32, {1, e.D, e.N}, A);
  for (int32_t s = 0; s < e.P; ++s) c.order[static_cast<size_t>(s)] = s;
  if (c.forward() != EM_OK) return fail("overflow: %s", c.message);
  std::vector<double> y = c.y.values(), reference = c.reference_forward();
  for (int64_t d = 0; d < e.D; ++d) {
    const double last = y[static_cast<size_t>((e.P - 1) * e.D + d)];
    const bool expected = d != 5 && d != 11 && d != 20;
    if (std::isfinite(last) != expected) fail("overflow: channel %d ends in %g", static_cast<int>(d), last);
    for (int64_t s = 0; !expected && s < e.P; ++s) {
      y[static_cast<size_t>(s * e.D + d)] = reference[static_cast<size_t>(s * e.D + d)] = 0;
    }
  }
  compare(c, "y beside overflow", y, reference, tolerance(EM_F32));
}

// An unwanted gradient is not touched, and does not change the others.
void gradients_by_choice() {
  const Extents e{2, 20, 1, 2, 19, 4, 20};
  Case all(e, EM_F32, 3), some(e, EM_F32, 3);
  if (all.backward() != EM_OK) return fail("%s", all.message);
  for (size_t kept = 0; kept < 7; ++kept) {
    const em_scan_inputs in = some.inputs();
    const em_tensor dy = some.dy.view();
    em_scan_gradients out = {};
    em_tensor* const slots[] = {&out.u, &out.delta, &out.A, &out.B, &out.C, &out.D, &out.delta_bias};
    *slots[kept] = some.gradients[kept].view();
    if (em_selective_scan_backward(&in, &dy, &out, nullptr, nullptr, 0) != EM_OK) fail("%s alone", kGradients[kept]);
    if (some.gradients[kept].bytes() != all.gradients[kept].bytes()) fail("%s alone differs", kGradients[kept]);
  }
}

}  // namespace

void test_values() {
  random_shapes();
  corners();
  overflow_and_nan();
  gradients_by_choice();
}
