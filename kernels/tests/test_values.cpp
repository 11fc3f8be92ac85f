// Forward and gradients against double loops, on random shapes and on the corners of the arithmetic.
#include "check.h"
#include "table.h"

namespace {

constexpr const char* kGradients[] = {"du", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias"};

void check(Case&& c, double slack = 1) {
  const em_executor threads = {static_cast<int32_t>(1 + c.extents.D % 3), nullptr, nullptr};
  if (c.forward(&threads) != EM_OK) return fail("%s: %s", c.name().c_str(), c.message);
  const auto y = c.y.values();
  compare(c, "y", y, c.reference_forward(), slack * tolerance(c.dtype));
  const auto expected = c.reference_backward();
  const auto compare_gradients = [&] {
    for (size_t i = 0; i < expected.size(); ++i) {
      compare(c, kGradients[i], c.gradients[i].values(), expected[i], slack * tolerance(c.dtype));
    }
  };
  const std::vector<Tensor> unwritten = c.gradients;
  if (c.backward(&threads) != EM_OK) return fail("%s backward: %s", c.name().c_str(), c.message);
  compare_gradients();
  if (c.dtype == EM_F64) return;
  c.gradients = unwritten;
  if (c.forward_and_backward(&threads) != EM_OK) return fail("%s with checkpoints: %s", c.name().c_str(), c.message);
  compare(c, "y with checkpoints", c.y.values(), y, 0);
  compare_gradients();
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
    if (em_selective_scan_backward(&in, &dy, nullptr, &out, nullptr, nullptr, 0) != EM_OK) fail("%s alone", kGradients[kept]);
    if (some.gradients[kept].bytes() != all.gradients[kept].bytes()) fail("%s alone differs", kGradients[kept]);
  }
}

}  // namespace

void test_values() {
  for_random_shapes({EM_F32, EM_F16, EM_BF16, EM_F64}, [](Case&& c) { check(std::move(c)); });
  for_corners(8, check);
  for (int64_t states : {4, 64}) {
    check_overflow_and_nan(6, states, [](Case* c) {
      if (c->forward() != EM_OK) fail("overflow: %s", c->message);
      return c->y.values();
    });
  }
  gradients_by_choice();
}
