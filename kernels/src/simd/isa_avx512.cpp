// The kernels for x86-64-v4; CMake compiles this file alone with that instruction set.
#include <immintrin.h>
#include <string.h>

#include "half.h"
#include "simd/kernels.h"

namespace edgemamba {
namespace isa_avx512 {
namespace {

#include "simd/vec_avx512.h"

#include "simd/math.inl"

#include "simd/rows.inl"

#include "simd/forward.inl"

#include "simd/backward.inl"

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"x86-64-v4", forward_scratch, forward, backward_scratch, backward};

}  // namespace isa_avx512
}  // namespace edgemamba
