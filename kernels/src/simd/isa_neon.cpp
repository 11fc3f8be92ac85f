// The kernels for aarch64, whose every machine has NEON.
#include <arm_neon.h>
#include <string.h>

#include "half.h"
#include "simd/kernels.h"

namespace edgemamba {
namespace isa_neon {
namespace {

#include "simd/vec_neon.h"

#include "simd/math.inl"

#include "simd/rows.inl"

#include "simd/forward.inl"

#include "simd/backward.inl"

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"neon", forward_scratch, forward, backward_scratch, backward};

}  // namespace isa_neon
}  // namespace edgemamba
