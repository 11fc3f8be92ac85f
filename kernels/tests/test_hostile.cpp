// Bad arguments: an error whose message starts with the argument's name, and no memory touched.
#include <cstring>
#include <functional>
#include <limits>

#include "case.h"
#include "check.h"

namespace {

using Spoil = std::function<void(em_scan_inputs*, em_tensor*)>;

void expect(const char* start, const Spoil& spoil) {
  Case c({2, 6, 2, 2, 5, 3, 4}, EM_F32, 1);
  em_scan_inputs in = c.inputs();
  em_tensor y = c.y.view();
  spoil(&in, &y);
  const auto before = c.y.bytes();
  char message[256] = "nothing";
  const int status = em_selective_scan(&in, &y, nullptr, message, sizeof message);
  if (status != EM_INVALID_ARGUMENT) fail("%s: status %d (%s)", start, status, message);
  if (std::strncmp(message, start, std::strlen(start)) != 0) fail("expected \"%s...\", got \"%s\"", start, message);
  if (c.y.bytes() != before) fail("%s: y was written", start);
}

// `set(values)` changes the order before the call.
void expect_order(const char* start, const std::function<void(std::vector<int32_t>*)>& set) {
  Case c({2, 6, 2, 2, 5, 3, 4}, EM_F32, 1);
  for (int32_t i = 0; i < 8; ++i) c.order[static_cast<size_t>(i)] = i % 4;
  set(&c.order);
  if (c.forward() != EM_INVALID_ARGUMENT) fail("%s: accepted", start);
  if (std::strcmp(c.message, start) != 0) fail("expected \"%s\", got \"%s\"", start, c.message);
}

em_tensor em_scan_inputs::* const kInputs[] = {&em_scan_inputs::u,          &em_scan_inputs::delta, &em_scan_inputs::A,
                                               &em_scan_inputs::B,          &em_scan_inputs::C,     &em_scan_inputs::D,
                                               &em_scan_inputs::delta_bias, &em_scan_inputs::order};
constexpr const char* kNames[] = {"u: ", "delta: ", "A: ", "B: ", "C: ", "D: ", "delta_bias: ", "order: "};

}  // namespace

void test_hostile() {
  static const int64_t wrong[8] = {2, 6, 2, 99, 1, 1, 1, 1}, negative[4] = {2, -6, 2, 5};
  static const int64_t vast[4] = {1ll << 40, 1ll << 30, 2, 5};
  for (size_t i = 0; i < 8; ++i) {
    const auto argument = kInputs[i];
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).dtype = 7; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).rank += 1; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).rank = -1; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).shape = nullptr; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).shape = negative; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).data = nullptr; });
    if (i != 1) expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).shape = wrong + 1; });
    expect(kNames[i], [&](em_scan_inputs* in, em_tensor*) { (in->*argument).shape = vast; });
  }
  // delta has the extents that the others must agree with; the first to disagree is named.
  expect("u: shape", [&](em_scan_inputs* in, em_tensor*) { in->delta.shape = wrong; });
  expect("u: 3 directions", [](em_scan_inputs* in, em_tensor*) {
    static const int64_t three[4] = {2, 6, 3, 5};
    in->u.shape = three;
  });
  expect("delta: no channels", [](em_scan_inputs* in, em_tensor*) {
    static const int64_t none[4] = {2, 6, 2, 0};
    in->delta.shape = none;
  });
  expect("A: no states", [](em_scan_inputs* in, em_tensor*) {
    static const int64_t none[3] = {2, 5, 0};
    in->A.shape = none;
  });
  expect("order: 7 steps", [](em_scan_inputs* in, em_tensor*) {
    static const int64_t seven[2] = {2, 7};
    in->order.shape = seven;
  });
  expect("y: dtype", [](em_scan_inputs*, em_tensor* y) { y->dtype = EM_F16; });
  expect("y: shape", [](em_scan_inputs*, em_tensor* y) { y->shape = wrong + 1; });
  expect("y: data", [](em_scan_inputs*, em_tensor* y) { y->data = nullptr; });
  expect("delta_softplus: 3", [](em_scan_inputs* in, em_tensor*) { in->delta_softplus = 3; });

  expect_order("order: entry 7 at [0, 3] is outside 0..5", [](std::vector<int32_t>* order) { (*order)[3] = 7; });
  expect_order("order: entry -1 at [1, 0] is outside 0..5", [](std::vector<int32_t>* order) { (*order)[4] = -1; });
  expect_order("order: entry -2147483648 at [0, 0] is outside 0..5",
               [](std::vector<int32_t>* order) { (*order)[0] = std::numeric_limits<int32_t>::min(); });
  expect_order("order: position 2 is visited twice in direction 1",
               [](std::vector<int32_t>* order) { (*order)[7] = 2; });

  if (em_selective_scan(nullptr, nullptr, nullptr, nullptr, 0) != EM_INVALID_ARGUMENT) fail("NULL inputs accepted");
  Case c({1, 4, 1, 1, 3, 2, 4}, EM_F32, 1);
  const em_scan_inputs in = c.inputs();
  if (em_selective_scan(&in, nullptr, nullptr, nullptr, 0) != EM_INVALID_ARGUMENT) fail("NULL y accepted");
  const em_tensor dy = c.dy.view();
  char message[8];
  if (em_selective_scan_backward(&in, &dy, nullptr, nullptr, nullptr, message, sizeof message) != EM_INVALID_ARGUMENT ||
      std::strlen(message) != sizeof message - 1) {
    fail("NULL gradients: message not cut to its buffer");
  }
  em_scan_gradients gradients = {};
  gradients.A = c.gradients[2].view();
  gradients.A.rank = 2;
  char line[256];
  if (em_selective_scan_backward(&in, &dy, nullptr, &gradients, nullptr, line, sizeof line) != EM_INVALID_ARGUMENT ||
      std::strncmp(line, "gradient of A: rank", 19) != 0) {
    fail("bad gradient: \"%s\"", line);
  }

  const em_tensor y = c.y.view();
  if (em_selective_scan_checkpointed(&in, &y, nullptr, nullptr, line, sizeof line) != EM_INVALID_ARGUMENT ||
      std::strcmp(line, "checkpoints: NULL") != 0) {
    fail("NULL checkpoints: \"%s\"", line);
  }
  Tensor more(EM_F32, {1, 2, 1, 2, 3}, std::vector<double>(12));
  const em_tensor too_many = more.view();
  const em_scan_gradients none = {};
  if (em_selective_scan_checkpointed(&in, &y, &too_many, nullptr, line, sizeof line) != EM_INVALID_ARGUMENT ||
      em_selective_scan_backward(&in, &dy, &too_many, &none, nullptr, line, sizeof line) != EM_INVALID_ARGUMENT ||
      std::strncmp(line, "checkpoints: shape", 18) != 0) {
    fail("checkpoints of another shape: \"%s\"", line);
  }
  Case wide({1, 4, 1, 1, 3, 2, 4}, EM_F64, 1);
  if (wide.forward_and_backward() != EM_INVALID_ARGUMENT ||
      std::strcmp(wide.message, "checkpoints: float64 keeps none") != 0) {
    fail("float64 checkpoints: \"%s\"", wide.message);
  }
}
