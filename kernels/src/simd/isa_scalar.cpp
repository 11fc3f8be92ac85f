// The kernels for any machine: one lane, no instruction set of its own.
#include <string.h>

#include "half.h"
#include "simd/kernels.h"

namespace edgemamba {
namespace isa_scalar {
namespace {

#include "simd/vec_scalar.h"

#include "simd/math.inl"

#include "simd/rows.inl"

#include "simd/forward.inl"

#include "simd/backward.inl"

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"scalar", forward_scratch, forward, backward_scratch, backward};

}  // namespace isa_scalar
}  // namespace edgemamba
