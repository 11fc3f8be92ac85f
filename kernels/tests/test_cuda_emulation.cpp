// The kernels' code, run by the emulation, against double loops: both algorithms over the CPU kernel's kinds of cases.
#include <cmath>
#include <limits>

#include "cuda_arguments.h"
#include "cuda_emulation.h"
#include "edgemamba/scan_cuda.h"

using namespace edgemamba;

namespace {

double tolerance(int32_t dtype) { return dtype == EM_F16 ? 1.5e-3 : dtype == EM_BF16 ? 1.2e-2 : 5e-6; }

// With this many multiprocessors chunks are always worth while, where there are steps for two.
constexpr int kMany = 1 << 20;

struct Output {
  std::vector<double> values;
  int64_t chunks;
};

Output run(Case* c, int32_t algorithm, unsigned seed) {
  const em_scan_inputs in = c->inputs();
  Problem problem;
  if (!read_device_inputs(&in, &problem, Message(c->message, sizeof c->message))) {
    fail("%s: %s", c->name().c_str(), c->message);
    return {};
  }
  const int64_t chunks = emulate(problem, algorithm, kMany, seed, c->y.view().data);
  return {c->y.values(), chunks};
}

void compare(const Case& c, const char* what, const std::vector<double>& found, const std::vector<double>& expected,
             double slack) {
  double largest = 1, worst = 0;
  for (double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size() && !std::isnan(worst); ++i) {
    const double error = std::fabs(found[i] - expected[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
  }
  if (found.size() != expected.size() || !(worst <= slack * tolerance(c.dtype) * largest)) {
    fail("%s %s: off by %g of %g", c.name().c_str(), what, worst, largest);
  }
}

void check(Case&& c, double slack = 1) {
  const std::vector<double> expected = c.reference_forward();
  const Output sequential = run(&c, EM_CUDA_SEQUENTIAL, 1);
  compare(c, "sequential", sequential.values, expected, slack);
  if (run(&c, EM_CUDA_SEQUENTIAL, 2).values != sequential.values) fail("%s: depends on order", c.name().c_str());
  const Output chunked = run(&c, EM_CUDA_CHUNKED, 3);
  if ((chunked.chunks > 1) != (c.extents.S > 16 && c.extents.B > 0)) fail("%s: not chunked", c.name().c_str());
  compare(c, "chunked", chunked.values, expected, slack);
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
              one_of({1, 3, 8, 15, 16, 17, 33, 64, 70, 100, 140}),
              one_of({1, 2, 4, 5, 8, 13, 16, 20, 64}),
              0};
    e.Gu = one_of({1, e.G});
    e.S = one_of({e.P, e.P, e.P / 2, 0});
    for (int32_t dtype : {EM_F32, EM_F16, EM_BF16}) {
      const bool softplus = seed % 5 != 0;
      check(Case(e, dtype, seed, softplus ? -1 : 0.5, softplus ? 1 : 0.1, 1, softplus));
    }
  }
}

void corners() {
  const Extents e{1, 40, 1, 2, 21, 16, 40};
  check(Case(e, EM_F32, 1, 0, 40));             // steps from e^-100 to 100
  check(Case(e, EM_F32, 2, -1, 1, 1e4));        // the state forgets at once
  check(Case(e, EM_F32, 3, -14, 1));            // softplus as small as e^x
  check(Case(e, EM_F32, 4, 3, 2, 10), 4);       // some exponents past the range of float32
  check(Case({1, 600, 1, 1, 5, 16, 600}, EM_F32, 5, -5, 1));  // a long memory
}

// Positions outside 0..P-1 are left out, as if the direction were shorter.
void bad_positions() {
  for (int64_t G : {1, 2}) {
    const Extents e{2, 50, 1, G, 9, 16, 40};
    Case good(e, EM_F32, 8), bad(e, EM_F32, 8);
    good.order.clear();
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t s = 0; s < e.S; ++s) {
        int32_t& entry = bad.order[static_cast<size_t>(g * e.S + s)];
        if (s % 8 == 3) {
          constexpr int32_t kBad[] = {-1, 50, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()};
          entry = kBad[s / 8 % 4];
        } else {
          good.order.push_back(entry);
        }
      }
    }
    good.extents.S = e.S / 8 * 7;
    const std::vector<double> expected = good.reference_forward();
    compare(bad, "bad positions", run(&bad, EM_CUDA_SEQUENTIAL, 1).values, expected, 1);
    compare(bad, "bad positions, chunked", run(&bad, EM_CUDA_CHUNKED, 1).values, expected, 1);
  }
}

// A NaN, or an overflow, stays in its channel. Of 64 states the last takes the polynomial.
void overflow_and_nan() {
  const Extents e{1, 40, 1, 1, 37, 64, 40};
  for (int32_t algorithm : {EM_CUDA_SEQUENTIAL, EM_CUDA_CHUNKED}) {
    Case c(e, EM_F32, 1, 0, 0, 1, false);
    std::vector<double> delta(static_cast<size_t>(e.P * e.D), 0.1), A(static_cast<size_t>(e.D * e.N), -1.0);
    delta[2 * 37 + 5] = std::numeric_limits<double>::quiet_NaN();
    for (int64_t s = 0; s < e.P; ++s) delta[static_cast<size_t>(s * 37 + 20)] = -500;  // exp(500) overflows
    A[11 * 64 + 0] = A[12 * 64 + 63] = std::nan("");
    for (int64_t n = 0; n < e.N; ++n) A[static_cast<size_t>(13 * 64 + n)] = -std::numeric_limits<double>::infinity();
    c.delta = Tensor(EM_F32, {1, e.P, 1, e.D}, delta);
    c.A = Tensor(EM_F32, {1, e.D, e.N}, A);
    for (int32_t s = 0; s < e.P; ++s) c.order[static_cast<size_t>(s)] = s;
    std::vector<double> y = run(&c, algorithm, 1).values, reference = c.reference_forward();
    for (int64_t d = 0; d < e.D; ++d) {
      const double last = y[static_cast<size_t>((e.P - 1) * e.D + d)];
      const bool expected = d != 5 && d != 11 && d != 12 && d != 20;
      if (std::isfinite(last) != expected) fail("overflow: channel %d ends in %g", static_cast<int>(d), last);
      for (int64_t s = 0; !expected && s < e.P; ++s) {
        y[static_cast<size_t>(s * e.D + d)] = reference[static_cast<size_t>(s * e.D + d)] = 0;
      }
    }
    compare(c, "beside overflow", y, reference, 1);
  }
}

}  // namespace

void test_cuda_emulation() {
  random_shapes();
  corners();
  bad_positions();
  overflow_and_nan();
}
