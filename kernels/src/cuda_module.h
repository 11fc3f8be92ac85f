// The embedded device code, loaded once for each context.
#ifndef EDGEMAMBA_SRC_CUDA_MODULE_H
#define EDGEMAMBA_SRC_CUDA_MODULE_H

#include <map>
#include <string>

#include "cuda_driver.h"

namespace edgemamba {

extern const char* const kScanPtx;  // cuda/generated/scan_sm75.ptx, NUL-terminated: see cuda/embed_ptx.cmake

struct CudaModule {
  int multiprocessors = 0;
  std::map<std::string, CuFunction> functions;
};

// That of the current context, loaded now where it is not yet; nullptr, the status and the message where it cannot be.
// Throws std::bad_alloc.
const CudaModule* cuda_module(const CudaDriver& driver, int* status, const Message& message);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_CUDA_MODULE_H
