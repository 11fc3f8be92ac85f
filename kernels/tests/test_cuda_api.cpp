// The C ABI: bad arguments are refused by name before a driver is asked for; without a driver that is what it says. The
// addresses here are the host's: nothing that is right may reach a real device.
#include <cstring>

#include "cuda_emulation.h"
#include "edgemamba/scan_cuda.h"

namespace {

struct Call {
  Call() : c({1, 12, 1, 2, 5, 4, 12}, EM_F32, 1), in(c.inputs()), y(c.y.view()) {}
  int run() {
    return em_cuda_selective_scan(&in, &y, workspace, bytes, algorithm, nullptr, c.message, sizeof c.message);
  }
  Case c;
  em_scan_inputs in;
  em_tensor y;
  void* workspace = nullptr;
  size_t bytes = 0;
  int32_t algorithm = EM_CUDA_AUTO;
};

void refused(Call&& call, const char* name) {
  const int status = call.run();
  if (status != EM_INVALID_ARGUMENT || std::strncmp(call.c.message, name, std::strlen(name)) != 0) {
    fail("%s: status %d, \"%s\"", name, status, call.c.message);
  }
}

template <typename Change>
void refused(const char* name, const Change& change) {
  Call call;
  change(call);
  refused(std::move(call), name);
}

void bad_arguments() {
  static const int64_t three[] = {2, 12, 1}, longer[] = {2, 13}, other[] = {3, 12}, negative[] = {2, -1};
  refused("order: rank", [](Call& c) { c.in.order.rank = 3, c.in.order.shape = three; });
  refused("order: 13 steps", [](Call& c) { c.in.order.shape = longer; });
  refused("order: shape", [](Call& c) { c.in.order.shape = other; });
  refused("order: extent", [](Call& c) { c.in.order.shape = negative; });
  refused("order: no shape", [](Call& c) { c.in.order.shape = nullptr; });
  refused("order: data", [](Call& c) { c.in.order.data = nullptr; });
  refused("order: dtype", [](Call& c) { c.in.order.dtype = EM_F32; });
  refused("delta: rank", [](Call& c) { c.in.delta.rank = 3; });
  refused("B: dtype", [](Call& c) { c.in.B.dtype = EM_F16; });
  refused("A: data", [](Call& c) { c.in.A.data = nullptr; });
  refused("y: dtype", [](Call& c) { c.y.dtype = EM_F16; });
  refused("y: data", [](Call& c) { c.y.data = nullptr; });
  refused("delta_softplus", [](Call& c) { c.in.delta_softplus = 2; });
  refused("algorithm", [](Call& c) { c.algorithm = 3; });
  refused("workspace", [](Call& c) { c.workspace = reinterpret_cast<void*>(uintptr_t{8}); });
  Case doubles({1, 12, 1, 2, 5, 4, 12}, EM_F64, 1), wide({1, 12, 1, 2, 5, 65, 12}, EM_F32, 1);
  for (Case* c : {&doubles, &wide}) {
    const em_scan_inputs in = c->inputs();
    const em_tensor y = c->y.view();
    const int status = em_cuda_selective_scan(&in, &y, nullptr, 0, EM_CUDA_AUTO, nullptr, c->message, 256);
    if (status != EM_INVALID_ARGUMENT) fail("%s: status %d, \"%s\"", c->name().c_str(), status, c->message);
  }
  char text[64] = "";
  if (em_cuda_selective_scan(nullptr, nullptr, nullptr, 0, 0, nullptr, text, sizeof text) != EM_INVALID_ARGUMENT) {
    fail("NULL inputs: \"%s\"", text);
  }
}

// `order` is not read: entries that the CPU refuses pass here, and what stops the call is the missing driver or
// context.
void contents_of_order() {
  Call call;
  call.c.order[3] = 1000;
  const int status = call.run();
  if (status != EM_CUDA_UNAVAILABLE || std::strncmp(call.c.message, "CUDA: ", 6) != 0) {
    fail("order's contents: status %d, \"%s\"", status, call.c.message);
  }
}

void without_elements() {
  Case c({0, 12, 1, 2, 5, 4, 12}, EM_F32, 1);
  const em_scan_inputs in = c.inputs();
  const em_tensor y = c.y.view();
  if (em_cuda_selective_scan(&in, &y, nullptr, 0, 0, nullptr, c.message, sizeof c.message) != EM_OK) {
    fail("no batch: %s", c.message);
  }
}

void availability() {
  char first[256] = "", second[256] = "";
  const int status = em_cuda_available(first, sizeof first);
  if (status != EM_OK && (status != EM_CUDA_UNAVAILABLE || first[0] == '\0')) fail("available: %d, %s", status, first);
  if (em_cuda_available(second, sizeof second) != status || std::strcmp(first, second) != 0) fail("said two things");
  if (em_cuda_available(nullptr, 0) != status) fail("available, without a message");
  // No context is current here, with or without a driver.
  if (em_cuda_prepare(first, sizeof first) != EM_CUDA_UNAVAILABLE || first[0] == '\0') fail("prepare: %s", first);
}

}  // namespace

void test_cuda_api() {
  bad_arguments();
  contents_of_order();
  without_elements();
  availability();
}
