// exp2 and softplus on Vec. Included inside the namespace of its instruction set.

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-8f, kLn2 = 0.693147181f;

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
constexpr float kMagic = 12582912.0f;

// Up to this, 2^x and the polynomial's factor of it are normal numbers, which `scale` needs.
constexpr float kExponentLimit = 125.0f;

// 2^f on [-1/2, 1/2]: relative error 9.2e-8, and exactly 1 at 0.
constexpr float kExp2[] = {1.0f, 6.93147004e-1f, 2.40222424e-1f, 5.55073358e-2f, 9.67151579e-3f, 1.32647657e-3f};

static inline Vec exp2_fraction(Vec f) {
  Vec p = fma(set(kExp2[5]), f, set(kExp2[4]));
  p = fma(p, f, set(kExp2[3]));
  p = fma(p, f, set(kExp2[2]));
  p = fma(p, f, set(kExp2[1]));
  return fma(p, f, set(kExp2[0]));
}

// Which exponents a block of channels has in a chunk of steps, from the cheapest kind to compute to the dearest.
enum class Exponents {
  kSmall,     // |t a| <= kExponentLimit
  kDecaying,  // t a <= 0, however far
  kAny,       // what is left: growth past the limit, infinities, NaN
};

// 2^(t a), |t a| <= kExponentLimit. The product is never rounded.
static inline Vec exp2_small(Vec t, Vec a) {
  const Vec rounded = fma(t, a, set(kMagic));
  return scale(exp2_fraction(fms(t, a, rounded - set(kMagic))), rounded);
}

// 2^(t a), t a <= 0; what would be below 2^-125 is 2^-125.
static inline Vec exp2_decaying(Vec t, Vec a) {
  const Vec x = max(set(-kExponentLimit), t * a);
  const Vec rounded = x + set(kMagic);
  return scale(exp2_fraction(x - (rounded - set(kMagic))), rounded);
}

// 2^(t a) for anything: 0 below, infinity above, NaN for NaN.
static inline Vec exp2_any(Vec t, Vec a) {
  const Vec x = t * a;
  // Two factors, each a normal number; their product overflows and underflows by itself.
  const Vec half = max(set(-kExponentLimit), min(set(kExponentLimit), x * set(0.5f)));
  const Vec e = exp2_small(half, set(1.0f));
  return select(unordered(x), x, e * e);
}

template <Exponents kExponents>
static inline Vec exp2(Vec t, Vec a) {
  if (kExponents == Exponents::kSmall) return exp2_small(t, a);
  if (kExponents == Exponents::kDecaying) return exp2_decaying(t, a);
  return exp2_any(t, a);
}

// log(1 + e^x), to a few ulp for any x: x itself above 20, 0 where e^x is below 1e-37, NaN for NaN. K vectors at a
// time, stage by stage: one alone is a chain of some thirty dependent operations, of which a processor overlaps too
// few.
template <int K>
static inline void softplus(Vec* x) {
  Vec size[K], rounded[K], f[K], z[K], s[K], w[K], q[K];
#define EM_EACH _Pragma("GCC unroll 8") for (int k = 0; k < K; ++k)
  // z = e^-|x|, with log2(e) in two parts so that a large |x| costs no accuracy.
  EM_EACH size[k] = abs(x[k]);
  EM_EACH z[k] = min(size[k], set(86.0f));
  EM_EACH rounded[k] = fma(z[k], set(-kLog2E), set(kMagic));
  EM_EACH f[k] = fms(z[k], set(-kLog2E), rounded[k] - set(kMagic));
  EM_EACH f[k] = fma(z[k], set(-kLog2ELow), f[k]);
  EM_EACH z[k] = fma(set(kExp2[5]), f[k], set(kExp2[4]));
  EM_EACH z[k] = fma(z[k], f[k], set(kExp2[3]));
  EM_EACH z[k] = fma(z[k], f[k], set(kExp2[2]));
  EM_EACH z[k] = fma(z[k], f[k], set(kExp2[1]));
  EM_EACH z[k] = fma(z[k], f[k], set(kExp2[0]));
  EM_EACH z[k] = scale(z[k], rounded[k]);
  EM_EACH z[k] = select(not_below_or_equal(size[k], set(86.0f)), set(0.0f), z[k]);
  // log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3; the relative error does not grow as z goes to 0.
  EM_EACH s[k] = z[k] / (z[k] + set(2.0f));
  EM_EACH w[k] = s[k] * s[k];
  EM_EACH q[k] = fma(set(2.80314386e-1f), w[k], set(2.79976100e-1f));
  EM_EACH q[k] = fma(q[k], w[k], set(4.00218010e-1f));
  EM_EACH q[k] = fma(q[k], w[k], set(6.66664124e-1f));
  EM_EACH q[k] = fma(s[k] * w[k], q[k], s[k] + s[k]);
  // max keeps its second operand where one is NaN.
  EM_EACH x[k] = max(set(0.0f), x[k]) + q[k];
#undef EM_EACH
}
