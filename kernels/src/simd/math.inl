// exp2 and softplus on Vec. Included inside the namespace of its instruction set.

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-8f, kLn2 = 0.693147181f;

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
constexpr float kMagic = 12582912.0f;

// |t * a| up to this keeps the result of exp2_in_range, and any intermediate of it, a normal number.
constexpr float kExponentLimit = 125.0f;

// 2^f on [-1/2, 1/2], relative error 9.2e-8, and exactly 1 at 0.
static inline Vec exp2_fraction(Vec f) {
  Vec p = set(1.32647657e-3f);
  p = fma(p, f, set(9.67151579e-3f));
  p = fma(p, f, set(5.55073358e-2f));
  p = fma(p, f, set(2.40222424e-1f));
  p = fma(p, f, set(6.93147004e-1f));
  return fma(p, f, set(1.0f));
}

// 2^(t a) where |t a| <= kExponentLimit. The product is never rounded.
static inline Vec exp2_in_range(Vec t, Vec a) {
  const Vec rounded = fma(t, a, set(kMagic));
  return scale(exp2_fraction(fms(t, a, rounded - set(kMagic))), rounded);
}

template <int K>
static inline void exp2_in_range_group(Vec t, const float* a, Vec* e) {
  Vec r[K], f[K], p[K];
#define EACH _Pragma("GCC unroll 16") for (int k = 0; k < K; ++k)
#ifdef EM_ADDS
  EACH p[k] = t * load(a + k * kWidth);
  EACH r[k] = p[k] + set(kMagic);
  EACH f[k] = r[k] - set(kMagic);
  EACH f[k] = p[k] - f[k];
#else
  EACH r[k] = fma(t, load(a + k * kWidth), set(kMagic));
  EACH f[k] = r[k] - set(kMagic);
  EACH f[k] = fms(t, load(a + k * kWidth), f[k]);
#endif
  EACH p[k] = fma(set(1.32647657e-3f), f[k], set(9.67151579e-3f));
  EACH p[k] = fma(p[k], f[k], set(5.55073358e-2f));
  EACH p[k] = fma(p[k], f[k], set(2.40222424e-1f));
  EACH p[k] = fma(p[k], f[k], set(6.93147004e-1f));
  EACH p[k] = fma(p[k], f[k], set(1.0f));
  EACH e[k] = scale(p[k], r[k]);
#undef EACH
}

// 2^(t a) for anything: 0 below, infinity above, NaN for NaN.
static inline Vec exp2_any(Vec t, Vec a) {
  const Vec x = t * a;
  // Two factors, each a normal number; their product overflows and underflows by itself.
  const Vec half = max(set(-kExponentLimit), min(set(kExponentLimit), x * set(0.5f)));
  const Vec e = exp2_in_range(half, set(1.0f));
  return select(unordered(x), x, e * e);
}

// log(1 + e^x), to a few ulp for any x: x itself above 20, e^x far below 0, NaN for NaN.
static inline Vec softplus(Vec x) {
  // z = e^-|x|, with log2(e) in two parts so that a large |x| costs no accuracy.
  const Vec size = abs(x);
  const Vec bounded = min(size, set(86.0f));
  const Vec rounded = fma(bounded, set(-kLog2E), set(kMagic));
  const Vec fraction = fma(bounded, set(-kLog2ELow), fms(bounded, set(-kLog2E), rounded - set(kMagic)));
  Vec z = scale(exp2_fraction(fraction), rounded);
  z = select(not_below_or_equal(size, set(86.0f)), set(0.0f), z);
  // log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3; the relative error does not grow as z goes to 0.
  const Vec s = z / (z + set(2.0f));
  const Vec w = s * s;
  Vec q = fma(set(2.80314386e-1f), w, set(2.79976100e-1f));
  q = fma(q, w, set(4.00218010e-1f));
  q = fma(q, w, set(6.66664124e-1f));
  const Vec log1p = fma(s * w, q, s + s);
  // NaN: z is anything; max keeps its second operand.
  return max(set(0.0f), x) + log1p;
}
