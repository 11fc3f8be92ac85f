// The C ABI: validate, then hand over. Nothing is thrown past this file.
#include <cstring>
#include <new>

#include "arguments.h"
#include "scan.h"
#include "simd/kernels.h"

using namespace edgemamba;

namespace {

int report(int status, const Message& message) {
  if (status == EM_OUT_OF_MEMORY) message.set("selective scan: out of memory");
  if (status == EM_INTERNAL) message.set("selective scan: the caller's thread pool reported a failure");
  return status;
}

// Runs `body` and turns what it throws into a status.
template <typename Body>
int guarded(const Message& message, const Body& body) {
  try {
    return report(body(), message);
  } catch (const std::bad_alloc&) {
    return report(EM_OUT_OF_MEMORY, message);
  } catch (...) {
    message.set("selective scan: internal error");
    return EM_INTERNAL;
  }
}

}  // namespace

extern "C" {

int em_abi_version(void) { return EM_ABI_VERSION; }

int em_selective_scan(const em_scan_inputs* inputs, const em_tensor* y, const em_executor* executor, char* text,
                      size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&] {
    Problem problem;
    if (!read_inputs(inputs, &problem, message) || !check_output(y, "y", problem, message)) return EM_INVALID_ARGUMENT;
    return static_cast<em_status>(scan_forward(problem, y->data, nullptr, executor));
  });
}

int em_selective_scan_checkpointed(const em_scan_inputs* inputs, const em_tensor* y, const em_tensor* checkpoints,
                                   const em_executor* executor, char* text, size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&] {
    Problem problem;
    if (!read_inputs(inputs, &problem, message) || !check_output(y, "y", problem, message) ||
        !check_checkpoints(checkpoints, problem, message)) {
      return EM_INVALID_ARGUMENT;
    }
    return static_cast<em_status>(scan_forward(problem, y->data, static_cast<float*>(checkpoints->data), executor));
  });
}

int em_selective_scan_backward(const em_scan_inputs* inputs, const em_tensor* dy, const em_tensor* checkpoints,
                               const em_scan_gradients* gradients, const em_executor* executor, char* text,
                               size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&] {
    Problem problem;
    Gradients wanted;
    if (!read_inputs(inputs, &problem, message) || !check_output(dy, "dy", problem, message) ||
        (checkpoints != nullptr && !check_checkpoints(checkpoints, problem, message)) ||
        !read_gradients(gradients, problem, &wanted, message)) {
      return EM_INVALID_ARGUMENT;
    }
    const float* kept = checkpoints == nullptr ? nullptr : static_cast<const float*>(checkpoints->data);
    return static_cast<em_status>(scan_backward(problem, dy->data, kept, wanted, executor));
  });
}

const char* em_isa(void) { return kernels().name; }
const char* em_isa_list(void) { return kernels_list(); }

}  // extern "C"
