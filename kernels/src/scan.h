// The two computations behind the C ABI, on validated arguments. Both return an em_status.
#ifndef EDGEMAMBA_SRC_SCAN_H
#define EDGEMAMBA_SRC_SCAN_H

#include "problem.h"

namespace edgemamba {

// `checkpoints` may be null in both: not kept, or not there. float64 has none.
int scan_forward(const Problem& problem, void* y, float* checkpoints, const em_executor* executor);
int scan_backward(const Problem& problem, const void* dy, const float* checkpoints, const Gradients& gradients,
                  const em_executor* executor);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SCAN_H
