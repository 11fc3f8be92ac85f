// The kernels' code, run by the emulation, against double loops: both algorithms over the CPU kernel's kinds of cases.
#include <limits>

#include "cuda_arguments.h"
#include "cuda_emulation.h"
#include "edgemamba/scan_cuda.h"
#include "table.h"

using namespace edgemamba;

namespace {

// With this many multiprocessors chunks are always worth while, where there are steps for two.
constexpr int kMany = 1 << 20;

struct Output {
  std::vector<double> values;
  Emulated done;
};

Output run(Case* c, int32_t algorithm, unsigned seed, int left_out = -1) {
  const em_scan_inputs in = c->inputs();
  Problem problem;
  if (!read_device_inputs(&in, &problem, Message(c->message, sizeof c->message))) {
    fail("%s: %s", c->name().c_str(), c->message);
    return {};
  }
  const Emulated done = emulate(problem, algorithm, kMany, seed, c->y.view().data, left_out);
  if (left_out < 0 && (done.races != 0 || done.unwritten != 0)) {
    fail("%s: %d races, %d reads of nothing", c->name().c_str(), done.races, done.unwritten);
  }
  return {c->y.values(), done};
}

void check(Case&& c, double slack = 1) {
  const std::vector<double> expected = c.reference_forward();
  const double allowed = slack * tolerance(c.dtype);
  const Output sequential = run(&c, EM_CUDA_SEQUENTIAL, 1);
  compare(c, "sequential", sequential.values, expected, allowed);
  if (run(&c, EM_CUDA_SEQUENTIAL, 2).values != sequential.values) fail("%s: depends on order", c.name().c_str());
  const Output chunked = run(&c, EM_CUDA_CHUNKED, 3);
  if ((chunked.done.chunks > 1) != (c.extents.S > 16 && c.extents.B > 0)) fail("%s: not chunked", c.name().c_str());
  compare(c, "chunked", chunked.values, expected, allowed);
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
    const double allowed = tolerance(EM_F32);
    compare(bad, "bad positions", run(&bad, EM_CUDA_SEQUENTIAL, 1).values, expected, allowed);
    compare(bad, "bad positions, chunked", run(&bad, EM_CUDA_CHUNKED, 1).values, expected, allowed);
  }
}

}  // namespace

void test_cuda_emulation() {
  for_random_shapes({EM_F32, EM_F16, EM_BF16}, [](Case&& c) { check(std::move(c)); });
  for_corners(16, check);
  bad_positions();
  for (int32_t algorithm : {EM_CUDA_SEQUENTIAL, EM_CUDA_CHUNKED}) {
    for (int64_t states : {16, 64}) {  // of 64 states the last takes the polynomial
      check_overflow_and_nan(40, states, [&](Case* c) { return run(c, algorithm, 1).values; });
    }
  }
}

// Without any one of its barriers, but the last, a block reads what is not there yet: were one missing in scan_block.h,
// the emulation would notice.
void test_cuda_barriers() {
  for (const Extents& e : {Extents{1, 33, 1, 1, 20, 16, 33}, Extents{1, 33, 1, 2, 70, 4, 20},
                           Extents{1, 17, 1, 1, 128, 64, 17}, Extents{1, 40, 1, 1, 96, 1, 40}}) {
    for (int32_t algorithm : {EM_CUDA_SEQUENTIAL, EM_CUDA_CHUNKED}) {
      Case c(e, EM_F32, 1);
      const int barriers = run(&c, algorithm, 1).done.barriers;
      if (barriers < 3) fail("%s: %d barriers", c.name().c_str(), barriers);
      for (int left_out = 0; left_out + 1 < barriers; ++left_out) {
        const Emulated done = run(&c, algorithm, 1, left_out).done;
        if (done.races == 0) fail("%s: nobody misses barrier %d of %d", c.name().c_str(), left_out, barriers);
      }
    }
  }
}
