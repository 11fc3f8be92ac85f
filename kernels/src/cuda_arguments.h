// Validation of a call whose tensors are on the device.
#ifndef EDGEMAMBA_SRC_CUDA_ARGUMENTS_H
#define EDGEMAMBA_SRC_CUDA_ARGUMENTS_H

#include "arguments.h"
#include "cuda_plan.h"

namespace edgemamba {

// As read_inputs, but `order` is not read: its shape is checked, its contents are the kernels' business.
bool read_device_inputs(const em_scan_inputs* inputs, Problem* problem, const Message& message);

CudaShape cuda_shape(const Problem& problem);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_CUDA_ARGUMENTS_H
