// The scan in a stream of ONNX Runtime's CUDA provider. Its workspace is allocated and freed in the order of that
// stream by the driver's own pool: ONNX Runtime's scratch buffers would have to be found and freed through parts of
// its ABI that releases differ in.
#ifndef EDGEMAMBA_ORT_CUDA_CALL_H
#define EDGEMAMBA_ORT_CUDA_CALL_H

#include <stdint.h>

#include "cuda_driver.h"
#include "edgemamba/scan_cuda.h"

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

namespace edgemamba::ort {

// cuMemAllocAsync and cuMemFreeAsync, of the driver since CUDA 11.2; both null where they are not there.
struct StreamPool {
  CuResult (*allocate)(CuDevicePointer* at, size_t bytes, CuStream stream) = nullptr;
  CuResult (*free)(CuDevicePointer at, CuStream stream) = nullptr;

  static const StreamPool& get() {
    static const StreamPool pool;
    return pool;
  }

 private:
  StreamPool() {
#if __has_include(<dlfcn.h>)
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed: see cuda_driver.cpp
    if (library == nullptr) return;
    allocate = reinterpret_cast<decltype(allocate)>(dlsym(library, "cuMemAllocAsync"));
    free = reinterpret_cast<decltype(free)>(dlsym(library, "cuMemFreeAsync"));
    if (free == nullptr) allocate = nullptr;
#endif
  }
};

// The bytes that the scan asks for on the current device; 0 where the shapes are not the operator's: the scan says so.
inline size_t workspace_bytes(const em_scan_inputs& in, const CudaDriver& driver) {
  if (in.delta.rank != 4 || in.A.rank != 3 || in.order.rank != 2) return 0;
  CuDevice device = 0;
  int multiprocessors = 0;
  if (driver.current_device(&device) != 0) return 0;
  if (driver.device_attribute(&multiprocessors, kAttributeMultiprocessors, device) != 0) multiprocessors = 0;
  const int64_t* delta = in.delta.shape;
  const size_t bytes = em_cuda_scan_workspace(delta[0], delta[1], delta[3], delta[2], in.A.shape[2], in.order.shape[1],
                                              in.u.dtype, EM_CUDA_AUTO, multiprocessors);
  return bytes == SIZE_MAX ? 0 : bytes;
}

// em_cuda_selective_scan with a workspace of its own. Enqueues and returns.
inline int scan_in_stream(const em_scan_inputs& inputs, const em_tensor& y, void* stream, char* message, size_t size) {
  const Message text(message, size);
  const CudaDriver* driver = cuda_driver(text);
  if (driver == nullptr) return EM_CUDA_UNAVAILABLE;
  auto* const handle = static_cast<CuStream>(stream);
  const size_t bytes = workspace_bytes(inputs, *driver);
  CuDevicePointer workspace = 0;
  if (bytes != 0) {
    const StreamPool& pool = StreamPool::get();
    if (pool.allocate == nullptr) {
      text.set("CUDA: the driver has no cuMemAllocAsync: CUDA 11.2 or newer is needed");
      return EM_CUDA_UNAVAILABLE;
    }
    const int status = cuda_status(*driver, pool.allocate(&workspace, bytes, handle), "the scan's workspace", text);
    if (status != EM_OK) return status;
  }
  void* const at = reinterpret_cast<void*>(workspace);
  const int status = em_cuda_selective_scan(&inputs, &y, at, bytes, EM_CUDA_AUTO, stream, message, size);
  // In the stream's order, so after the scan. Its own failure would be that of the work before it, which is reported.
  if (bytes != 0) StreamPool::get().free(workspace, handle);
  return status;
}

}  // namespace edgemamba::ort

#endif  // EDGEMAMBA_ORT_CUDA_CALL_H
