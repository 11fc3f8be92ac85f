// The arithmetic of one step of the scan: conversions, softplus, exp2, the states. Compiled for the GPU by nvcc and NVRTC
// and, the same lines, by g++ for the tests. Includes nothing where NVRTC compiles it: that has no headers at hand.
#ifndef EDGEMAMBA_CUDA_SCAN_STEP_H
#define EDGEMAMBA_CUDA_SCAN_STEP_H

#if !defined(__CUDACC_RTC__)
#include <math.h>
#include <string.h>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EM_HD __host__ __device__ __forceinline__
#define EM_UNROLL _Pragma("unroll")
#define EM_LOOP _Pragma("unroll 1")
#else
#define EM_HD inline
#define EM_UNROLL
#define EM_LOOP
#endif

// Of every 16 states of a kernel for N, this many take 2^x from a polynomial on the FMA pipe, the rest from the
// special-function unit. The argument for the default, in issue slots, is in NOTES.md.
#ifndef EM_POLY_IN_16
#define EM_POLY_IN_16(N) ((N) >= 64 ? 1 : 0)
#endif

namespace edgemamba {
namespace cuda {

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-8f, kLn2 = 0.693147181f;

EM_HD float as_float(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

EM_HD unsigned as_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

EM_HD float fma_of(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return ::fmaf(a, b, c);
#endif
}

// --- The element types: bits in memory, float32 in registers. ---

struct F32 {
  typedef float Bits;
};
struct F16 {
  typedef unsigned short Bits;
};
struct BF16 {
  typedef unsigned short Bits;
};

EM_HD float to_float(F32, float bits) { return bits; }
EM_HD void to_bits(F32, float value, float* bits) { *bits = value; }

EM_HD float to_float(BF16, unsigned short bits) { return as_float(static_cast<unsigned>(bits) << 16); }

// To nearest even, as the hardware of sm_80 and later does; in integers, because sm_75 has no such instruction.
EM_HD void to_bits(BF16, float value, unsigned short* bits) {
  const unsigned all = as_bits(value);
  const bool is_nan = (all & 0x7fffffffu) > 0x7f800000u;
  *bits = static_cast<unsigned short>(is_nan ? (all >> 16 | 0x40u) : (all + 0x7fffu + (all >> 16 & 1u)) >> 16);
}

EM_HD float to_float(F16, unsigned short bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const unsigned sign = static_cast<unsigned>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  return as_float(sign | as_bits(as_float(rest << 13) * as_float(0x77800000u)));  // 2^112: the other exponent bias
#endif
}

EM_HD void to_bits(F16, float value, unsigned short* bits) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*bits) : "f"(value));
#else
  const unsigned all = as_bits(value), sign = all >> 16 & 0x8000u, rest = all & 0x7fffffffu;
  unsigned half;
  if (rest > 0x7f800000u) {
    half = 0x7fffu;  // the GPU's NaN
  } else if (rest >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {
    half = as_bits(as_float(rest) + 0.5f) - 0x3f000000u;  // the adder rounds to multiples of 2^-24
  } else {
    half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
  }
  *bits = static_cast<unsigned short>(sign | half);
#endif
}

// --- Powers of two. ---

// The special-function unit: relative error about 2^-22, results below 2^-126 are 0.
EM_HD float exp2_unit(float x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#else
  const float value = ::exp2f(x);
  return value < 1.17549435e-38f ? 0.0f : value;
#endif
}

// The FMA pipe: 1.1e-7 (the polynomial of src/simd/math.inl, exactly 1 at 0). What would be below 2^-126 is 2^-126, which
// no longer shows beside one step's input; from 2^128 on infinity. The clamps swallow a NaN: see Lane::begin.
EM_HD float exp2_polynomial(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which stays in the low bits
  x = fminf(fmaxf(x, -126.0f), 128.0f);
  const float rounded = x + kMagic;
  const float f = x - (rounded - kMagic);
  float p = fma_of(1.32647273e-3f, f, 9.67151299e-3f);
  p = fma_of(p, f, 5.55073358e-2f);
  p = fma_of(p, f, 2.40222424e-1f);
  p = fma_of(p, f, 6.93147004e-1f);
  p = fma_of(p, f, 1.0f);
  return as_float(as_bits(p) + (as_bits(rounded) << 23));
}

// Does state n of kN take the polynomial? They are spread out, so that the two pipes work side by side.
template <int kN>
EM_HD constexpr bool takes_polynomial(int n) {
  return (n + 1) * EM_POLY_IN_16(kN) / 16 > n * EM_POLY_IN_16(kN) / 16;
}

template <int kN>
EM_HD float exp2_of_state(int n, float x) {
  return takes_polynomial<kN>(n) ? exp2_polynomial(x) : exp2_unit(x);
}

// log(1 + e^x), x itself from where e^-x no longer counts beside it, NaN for NaN. kExact: to a few ulp; else the relative error
// grows with -x, 6e-8 for each 1 of it: less than what a 16-bit x left out itself.
template <bool kExact>
EM_HD float softplus(float x) {
  const float z = fminf(fabsf(x), 87.0f);
  const float t = -z * kLog2E;
  float y = exp2_unit(t);
  if (kExact) {  // the part of z log2(e) that rounding dropped is put back to first order
    const float dropped = fma_of(z, -kLog2ELow, fma_of(z, -kLog2E, -t));
    y = fma_of(y * kLn2, dropped, y);
  }
  // log(1 + y) = y p(y) on [0, 1]: relative error 5.0e-8, p exactly 1 at 0. No lg2: it has no relative accuracy near 1.
  float p = fma_of(5.36482316e-3f, y, -3.00657898e-2f);
  p = fma_of(p, y, 7.92045295e-2f);
  p = fma_of(p, y, -1.37538016e-1f);
  p = fma_of(p, y, 1.91536546e-1f);
  p = fma_of(p, y, -2.48571634e-1f);
  p = fma_of(p, y, 3.33213240e-1f);
  p = fma_of(p, y, -4.99996483e-1f);
  p = fma_of(p, y, 1.0f);
  return fma_of(y, p, x < 0.0f ? 0.0f : x);  // a NaN is not below 0
}

// h_n = 2^(dt a_n) h_n + dt u B_n for all n; `a` is A log2(e). Returns <C, h> + skip where kOutput, else 0.
template <int kN, bool kOutput, typename Value>
EM_HD float step(float dt, float u, float skip, const float* a, const Value* B, const Value* C, float* h) {
  const float dt_u = dt * u;
  float y = skip * u;
  EM_UNROLL
  for (int n = 0; n < kN; ++n) {
    h[n] = fma_of(exp2_of_state<kN>(n, dt * a[n]), h[n], dt_u * B[n]);
    if (kOutput) y = fma_of(C[n], h[n], y);
  }
  return y;
}

}  // namespace cuda
}  // namespace edgemamba

#endif  // EDGEMAMBA_CUDA_SCAN_STEP_H
