// The C ABI of scan_cuda.h: validate, plan, enqueue. Nothing is thrown past this file.
#include <limits>
#include <new>

#include "cuda_arguments.h"
#include "cuda_module.h"
#include "edgemamba/scan_cuda.h"

using namespace edgemamba;

namespace {

template <typename Body>
int guarded(const Message& message, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    message.set("selective scan: out of memory");
    return EM_OUT_OF_MEMORY;
  } catch (...) {
    message.set("selective scan: internal error");
    return EM_INTERNAL;
  }
}

bool is_algorithm(int32_t algorithm) {
  return algorithm == EM_CUDA_AUTO || algorithm == EM_CUDA_SEQUENTIAL || algorithm == EM_CUDA_CHUNKED;
}

int64_t element_bytes(int32_t dtype) { return dtype == EM_F32 ? 4 : 2; }

CuDevicePointer device_pointer(const void* data) { return reinterpret_cast<CuDevicePointer>(data); }

// Everything that one scan puts on the stream.
int enqueue(const CudaDriver& driver, const CudaModule& module, const Problem& problem, const CudaPlan& plan, void* y,
            void* workspace, CuStream stream, const Message& message) {
  // What no direction visits is 0. Several directions: the reduction writes every position, and reads by step_of.
  int status = EM_OK;
  if (problem.directions == 1) {
    const int64_t bytes = problem.batch * problem.positions * problem.channels * element_bytes(problem.dtype);
    status = cuda_status(driver, driver.memset8(device_pointer(y), 0, static_cast<size_t>(bytes), stream),
                         "clearing the output", message);
  } else {
    status = cuda_status(driver, driver.memset32(device_pointer(workspace), 0xffffffffu,
                                                 static_cast<size_t>(problem.directions * problem.positions), stream),
                         "clearing the workspace", message);
  }
  if (status != EM_OK || (problem.steps == 0 && problem.directions == 1)) return status;

  cuda::ScanArgs args = cuda_args(problem, plan, y, workspace);
  void* parameters[] = {&args};
  CudaLaunch launches[kMaxLaunches];
  const int count = cuda_launches(cuda_shape(problem), plan, y, launches);
  for (int i = 0; i < count && status == EM_OK; ++i) {
    const CudaLaunch& launch = launches[i];
    const auto found = module.functions.find(launch.kernel);
    if (found == module.functions.end()) {
      message.set("CUDA: the embedded device code has no kernel %s", launch.kernel);
      return EM_INTERNAL;
    }
    status = cuda_status(driver, driver.launch(found->second, static_cast<unsigned>(launch.blocks), 1, 1,
                                               static_cast<unsigned>(launch.threads), 1, 1, 0, stream, parameters,
                                               nullptr),
                         launch.kernel, message);
  }
  return status;
}

}  // namespace

extern "C" {

size_t em_cuda_scan_workspace(int64_t B, int64_t P, int64_t D, int64_t G, int64_t N, int64_t S, int32_t dtype,
                              int32_t algorithm, int32_t multiprocessors) {
  const CudaShape shape = {B, P, D, G, N, S, dtype};
  const char* why = nullptr;
  if (!is_algorithm(algorithm) || !cuda_supports(shape, &why)) return std::numeric_limits<size_t>::max();
  return static_cast<size_t>(cuda_plan(shape, algorithm, multiprocessors).workspace.bytes());
}

int32_t em_cuda_scan_algorithm(int64_t B, int64_t P, int64_t D, int64_t G, int64_t N, int64_t S, int32_t dtype,
                               int32_t multiprocessors) {
  const CudaShape shape = {B, P, D, G, N, S, dtype};
  const char* why = nullptr;
  if (!cuda_supports(shape, &why)) return 0;
  return cuda_plan(shape, EM_CUDA_AUTO, multiprocessors).chunks > 1 ? EM_CUDA_CHUNKED : EM_CUDA_SEQUENTIAL;
}

int em_cuda_available(char* text, size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&]() -> int {
    const CudaDriver* const driver = cuda_driver(message);
    if (driver == nullptr) return EM_CUDA_UNAVAILABLE;
    int count = 0, newest = 0;
    if (cuda_status(*driver, driver->device_count(&count), "counting the devices", message) != EM_OK) {
      return EM_CUDA_UNAVAILABLE;
    }
    for (int i = 0; i < count; ++i) {
      CuDevice device = 0;
      if (driver->device_get(&device, i) != 0) continue;
      const int capability = cuda_capability(*driver, device);
      if (capability > newest) newest = capability;
    }
    if (newest >= kOldestCapability) return EM_OK;
    if (count == 0) {
      message.set("CUDA: the driver finds no device");
    } else {
      message.set("CUDA: the newest device has compute capability %d.%d; the scan needs 7.5 or newer", newest / 10,
                  newest % 10);
    }
    return EM_CUDA_UNAVAILABLE;
  });
}

int em_cuda_prepare(char* text, size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&]() -> int {
    const CudaDriver* const driver = cuda_driver(message);
    if (driver == nullptr) return EM_CUDA_UNAVAILABLE;
    int status = EM_OK;
    cuda_module(*driver, &status, message);
    return status;
  });
}

int em_cuda_selective_scan(const em_scan_inputs* inputs, const em_tensor* y, void* workspace, size_t workspace_bytes,
                           int32_t algorithm, void* stream, char* text, size_t text_size) {
  const Message message(text, text_size);
  return guarded(message, [&]() -> int {
    Problem problem;
    if (!read_device_inputs(inputs, &problem, message) || !check_output(y, "y", problem, message)) {
      return EM_INVALID_ARGUMENT;
    }
    const CudaShape shape = cuda_shape(problem);
    const char* why = nullptr;
    if (!cuda_supports(shape, &why)) {
      message.set("%s", why);
      return EM_INVALID_ARGUMENT;
    }
    if (!is_algorithm(algorithm)) {
      message.set("algorithm: %d, expected 0 (auto), 1 (sequential) or 2 (chunked)", algorithm);
      return EM_INVALID_ARGUMENT;
    }
    if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
      message.set("workspace: not aligned to 16 bytes");
      return EM_INVALID_ARGUMENT;
    }
    if (problem.batch == 0 || problem.positions == 0) return EM_OK;  // y has no elements

    const CudaDriver* const driver = cuda_driver(message);
    if (driver == nullptr) return EM_CUDA_UNAVAILABLE;
    int status = EM_OK;
    const CudaModule* const module = cuda_module(*driver, &status, message);
    if (module == nullptr) return status;
    const int64_t available = workspace == nullptr ? 0
                              : workspace_bytes > static_cast<size_t>(std::numeric_limits<int64_t>::max())
                                  ? std::numeric_limits<int64_t>::max()
                                  : static_cast<int64_t>(workspace_bytes);
    const CudaPlan plan = cuda_plan(shape, algorithm, module->multiprocessors, available);
    if (plan.workspace.bytes() > available) {
      message.set("workspace: %lld bytes, expected at least %lld", static_cast<long long>(available),
                  static_cast<long long>(plan.workspace.bytes()));
      return EM_INVALID_ARGUMENT;
    }
    return enqueue(*driver, *module, problem, plan, y->data, workspace, static_cast<CuStream>(stream), message);
  });
}

}  // extern "C"
