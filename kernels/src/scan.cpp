#include "scan.h"

#include "portable.h"
#include "portable_backward.h"

namespace edgemamba {

int scan_forward(const Problem& p, void* y, const em_executor* executor) {
  switch (p.dtype) {
    case EM_F16: return portable_forward<float>(p, static_cast<Float16*>(y), executor);
    case EM_BF16: return portable_forward<float>(p, static_cast<BFloat16*>(y), executor);
    case EM_F64: return portable_forward<double>(p, static_cast<double*>(y), executor);
    default: return portable_forward<float>(p, static_cast<float*>(y), executor);
  }
}

int scan_backward(const Problem& p, const void* dy, const Gradients& gradients, const em_executor* executor) {
  switch (p.dtype) {
    case EM_F16: return portable_backward<float>(p, static_cast<const Float16*>(dy), gradients, executor);
    case EM_BF16: return portable_backward<float>(p, static_cast<const BFloat16*>(dy), gradients, executor);
    case EM_F64: return portable_backward<double>(p, static_cast<const double*>(dy), gradients, executor);
    default: return portable_backward<float>(p, static_cast<const float*>(dy), gradients, executor);
  }
}

}  // namespace edgemamba
