// The CUDA driver, found at run time: the few functions that are needed, declared here so that no CUDA header is.
#ifndef EDGEMAMBA_SRC_CUDA_DRIVER_H
#define EDGEMAMBA_SRC_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "arguments.h"

namespace edgemamba {

// Of cuda.h: opaque handles, and the numbers of a stable ABI.
typedef int CuResult;  // 0: success
typedef int CuDevice;
typedef unsigned long long CuDevicePointer;
typedef struct CuContextHandle* CuContext;
typedef struct CuModuleHandle* CuModule;
typedef struct CuFunctionHandle* CuFunction;
typedef struct CuStreamHandle* CuStream;

struct CudaDriver {
  CuResult (*init)(unsigned flags);
  CuResult (*driver_version)(int* version);
  CuResult (*error_name)(CuResult error, const char** text);
  CuResult (*error_string)(CuResult error, const char** text);
  CuResult (*device_count)(int* count);
  CuResult (*device_get)(CuDevice* device, int ordinal);
  CuResult (*device_attribute)(int* value, int attribute, CuDevice device);
  CuResult (*current_context)(CuContext* context);
  CuResult (*current_device)(CuDevice* device);
  CuResult (*context_id)(CuContext context, unsigned long long* id);  // CUDA 12; else nullptr
  CuResult (*module_load)(CuModule* module, const void* image, unsigned count, int* options, void** values);
  CuResult (*module_unload)(CuModule module);
  CuResult (*module_function)(CuFunction* function, CuModule module, const char* name);
  CuResult (*launch)(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                     unsigned block_y, unsigned block_z, unsigned shared_bytes, CuStream stream, void** parameters,
                     void** extra);
  CuResult (*memset8)(CuDevicePointer at, unsigned char value, size_t bytes, CuStream stream);
  CuResult (*memset32)(CuDevicePointer at, unsigned value, size_t words, CuStream stream);
};

// The driver, loaded and initialised once for the process; nullptr, and why in the message, where that cannot be.
const CudaDriver* cuda_driver(const Message& message);

// EM_OK, or EM_CUDA_ERROR with "<what>: <the driver's words>" in the message.
int cuda_status(const CudaDriver& driver, CuResult result, const char* what, const Message& message);

// Compute capability as 10 * major + minor; 0 where the driver does not tell.
int cuda_capability(const CudaDriver& driver, CuDevice device);

constexpr int kOldestCapability = 75;  // that of the embedded PTX
constexpr int kAttributeMultiprocessors = 16;

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_CUDA_DRIVER_H
