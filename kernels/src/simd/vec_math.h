// exp2 and softplus over the lanes of Vec. Written once; every instruction set compiles it.
#ifndef EDGEMAMBA_SRC_SIMD_VEC_MATH_H
#define EDGEMAMBA_SRC_SIMD_VEC_MATH_H

// The including file has chosen the Vec and EDGEMAMBA_ISA_NAMESPACE.

namespace edgemamba {
namespace EDGEMAMBA_ISA_NAMESPACE {

// Adding this to |x| < 2^22 rounds x to an integer, which then stands in the sum's low bits.
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
// 2^x is a normal float for |x| up to this.
constexpr float kExp2Range = 126.0f;
constexpr float kLog2E = 1.44269504f;

// 2^f for |f| <= 1/2: 1 + f * q(f), so that 2^0 is exactly 1. q is the polynomial of degree 4 of least relative error
// (benchmarks/exp2_polynomial.py): 1.1e-7 at most, so below 2 ulp with the roundings of its evaluation.
static inline Vec exp2_fraction(Vec f) {
  Vec q = fma(set1(1.32647273e-3f), f, set1(9.67151299e-3f));
  q = fma(q, f, set1(5.55073358e-2f));
  q = fma(q, f, set1(2.40222424e-1f));
  q = fma(q, f, set1(6.93147004e-1f));
  return fma(q, f, set1(1.0f));
}

// 2^(t * a) for |t * a| <= kExp2Range: nine instructions, and t * a is never rounded on its own.
static inline Vec exp2_product(Vec t, Vec a) {
  const Vec magic = fma(t, a, set1(kMagic));
  const Vec fraction = fms(t, a, sub(magic, set1(kMagic)));
  return scale_by_magic(exp2_fraction(fraction), magic);
}

// 2^(t * a) for any t * a: down to 0, up to infinity, NaN for NaN. Relative error twice that of exp2_product.
static inline Vec exp2_product_any(Vec t, Vec a) {
  const Vec x = max(set1(-252.0f), min(set1(252.0f), mul(t, a)));
  // The square of 2^(x/2), which stays in range where 2^x does not.
  const Vec half = mul(x, set1(0.5f));
  const Vec magic = add(half, set1(kMagic));
  const Vec whole = sub(magic, set1(kMagic));
  const Vec once = scale_by_magic(exp2_fraction(sub(half, whole)), magic);
  // scale_by_magic may lose a NaN that carries a payload; x still has it, and is finite otherwise.
  return fma(x, set1(0.0f), mul(once, once));
}

// log(1 + exp(x)), accurate relative to itself also where it is tiny; x itself from 20 on, by rounding.
static inline Vec softplus(Vec x) {
  const Vec tail = max(set1(-kExp2Range), mul(abs(x), set1(-kLog2E)));
  const Vec e = exp2_product(tail, set1(1.0f));
  // log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3: the series needs seven terms for float32.
  const Vec s = div(e, add(e, set1(2.0f)));
  const Vec z = mul(s, s);
  Vec q = fma(set1(1.0f / 15), z, set1(1.0f / 13));
  q = fma(q, z, set1(1.0f / 11));
  q = fma(q, z, set1(1.0f / 9));
  q = fma(q, z, set1(1.0f / 7));
  q = fma(q, z, set1(1.0f / 5));
  q = fma(q, z, set1(1.0f / 3));
  q = fma(q, z, set1(1.0f));
  return fma(add(s, s), q, max(set1(0.0f), x));
}

// d softplus / dx = 1 / (1 + exp(-x)).
static inline Vec sigmoid(Vec x) {
  const Vec e = exp2_product(max(set1(-kExp2Range), mul(abs(x), set1(-kLog2E))), set1(1.0f));
  const Vec small = div(e, add(e, set1(1.0f)));
  return where_positive(x, sub(set1(1.0f), small), small);
}

}  // namespace EDGEMAMBA_ISA_NAMESPACE
}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_VEC_MATH_H
