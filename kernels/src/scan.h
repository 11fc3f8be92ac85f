// The two computations behind the C ABI, on validated arguments. Both return an em_status.
#ifndef EDGEMAMBA_SRC_SCAN_H
#define EDGEMAMBA_SRC_SCAN_H

#include "problem.h"

namespace edgemamba {

int scan_forward(const Problem& problem, void* y, const em_executor* executor);
int scan_backward(const Problem& problem, const void* dy, const Gradients& gradients, const em_executor* executor);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SCAN_H
