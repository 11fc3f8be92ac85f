// The entry points of one instruction set, for dispatch.cpp's table. The including file has chosen the Vec, and defines
// EDGEMAMBA_ISA_NAMESPACE and EDGEMAMBA_ISA_NAME.
#ifndef EDGEMAMBA_SRC_SIMD_TABLE_H
#define EDGEMAMBA_SRC_SIMD_TABLE_H

#include "../dispatch.h"
#include "backward.h"
#include "forward.h"

namespace edgemamba {
namespace EDGEMAMBA_ISA_NAMESPACE {

static int64_t any_forward_floats(const Problem& p, int64_t channels) {
  return p.dtype == EM_F32 ? forward_floats<float>(p, channels) : forward_floats<Float16>(p, channels);
}

static void any_forward(const Problem& p, void* y, int64_t b, int64_t first, int64_t channels, float* memory) {
  switch (p.dtype) {
    case EM_F16: return forward_block<Float16>(p, y, b, first, channels, memory);
    case EM_BF16: return forward_block<BFloat16>(p, y, b, first, channels, memory);
    default: return forward_block<float>(p, y, b, first, channels, memory);
  }
}

static void any_backward(const Problem& p, const void* dy, const Gradients& out, const Shares& shares, int64_t b,
                         int64_t first, int64_t channels, float* memory) {
  switch (p.dtype) {
    case EM_F16: return Backward<Float16>(p, dy, out, shares, b, first, channels, memory).run();
    case EM_BF16: return Backward<BFloat16>(p, dy, out, shares, b, first, channels, memory).run();
    default: return Backward<float>(p, dy, out, shares, b, first, channels, memory).run();
  }
}

extern const Kernels kernels = {EDGEMAMBA_ISA_NAME, kWidth,          any_forward_floats,
                                any_forward,        backward_floats, any_backward};

}  // namespace EDGEMAMBA_ISA_NAMESPACE
}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_TABLE_H
