// exp2 and softplus on Vec. Included inside the namespace of its instruction set.

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-8f, kLn2 = 0.693147181f;

// Adding 1.5 * 2^(23 - kTableBits) rounds to a multiple of 2^-kTableBits, whose integer multiple stays in the low bits.
constexpr float kMagic = 12582912.0f / (1 << kTableBits);

// Up to this, every factor of 2^x below is a normal number.
constexpr float kExponentLimit = 125.0f;

// A power of two, as the polynomial's value and a tabulated root where there is a table: what it multiplies takes the
// root first, which saves a product. Without a table the polynomial's value is all of it.
struct Power {
  Vec rest, root;
};

static inline Vec value(Power p) {
  if constexpr (kTableBits == 0) return p.rest;
  return p.root * p.rest;
}

// p * h + plus
static inline Vec times_plus(Power p, Vec h, Vec plus) {
  if constexpr (kTableBits == 0) return fma(p.rest, h, plus);
  return fma(p.rest, p.root * h, plus);
}

#define EM_INLINE __attribute__((always_inline)) static inline
#define EM_EACH _Pragma("GCC unroll 8") for (int k = 0; k < K; ++k)

// 2^x from x rounded by kMagic and what the rounding left, a fraction of at most 2^-(kTableBits + 1): K at a time, stage
// by stage. One alone is a chain of dependent operations, of which a processor overlaps too few. The polynomials are
// exactly 1 at 0; with eight roots tabulated degree 3 has a relative error of 2.7e-8, without a table degree 5 has 1.1e-7
// (benchmarks/kernel_polynomials.py).
template <int K>
EM_INLINE void powers(const Vec* rounded, const Vec* f, Power* out) {
  Vec p[K];
  if constexpr (kTableBits == 3) {
    EM_EACH p[k] = fma(set(5.54962233e-2f), f[k], set(2.40257636e-1f));
    EM_EACH p[k] = fma(p[k], f[k], set(6.93147242e-1f));
    EM_EACH p[k] = fma(p[k], f[k], set(1.0f));
    EM_EACH out[k] = {p[k], scale(lookup(rounded[k]), rounded[k])};
  } else {
    static_assert(kTableBits == 0 || kTableBits == 3, "there are polynomials for these two");
    EM_EACH p[k] = fma(set(1.32647273e-3f), f[k], set(9.67151299e-3f));
    EM_EACH p[k] = fma(p[k], f[k], set(5.55073358e-2f));
    EM_EACH p[k] = fma(p[k], f[k], set(2.40222424e-1f));
    EM_EACH p[k] = fma(p[k], f[k], set(6.93147004e-1f));
    EM_EACH p[k] = fma(p[k], f[k], set(1.0f));
    EM_EACH out[k] = {scale(p[k], rounded[k]), lookup(rounded[k])};
  }
}

// Which exponents a block of channels has in a chunk of steps, from the cheapest kind to compute to the dearest.
enum class Exponents {
  kSmall,     // |t a| <= kExponentLimit
  kDecaying,  // t a <= 0, however far
  kAny,       // what is left: growth past the limit, infinities, NaN
};

static inline Power power(Vec rounded, Vec fraction) {
  Power result;
  powers<1>(&rounded, &fraction, &result);
  return result;
}

// 2^(t a), |t a| <= kExponentLimit. The product is never rounded.
static inline Power exp2_small(Vec t, Vec a) {
  const Vec rounded = fma(t, a, set(kMagic));
  return power(rounded, fms(t, a, rounded - set(kMagic)));
}

// 2^(t a), t a <= 0; what would be below 2^-125 is 2^-125.
static inline Power exp2_decaying(Vec t, Vec a) {
  const Vec x = max(set(-kExponentLimit), t * a);
  const Vec rounded = x + set(kMagic);
  return power(rounded, x - (rounded - set(kMagic)));
}

// 2^(t a) for anything: 0 below, infinity above, NaN for NaN.
static inline Power exp2_any(Vec t, Vec a) {
  const Vec x = t * a;
  // Two factors, each a normal number; their product overflows and underflows by itself.
  const Vec half = max(set(-kExponentLimit), min(set(kExponentLimit), x * set(0.5f)));
  const Vec e = value(exp2_small(half, set(1.0f)));
  return {select(unordered(x), x, e * e), set(1.0f)};
}

template <Exponents kExponents>
static inline Power exp2(Vec t, Vec a) {
  if (kExponents == Exponents::kSmall) return exp2_small(t, a);
  if (kExponents == Exponents::kDecaying) return exp2_decaying(t, a);
  return exp2_any(t, a);
}

// log(1 + e^x), to a few ulp: x itself where e^-x no longer counts beside it, NaN for NaN, and where e^x is below 1.6e-38
// that instead of it. K vectors at a time, as in powers.
template <int K>
EM_INLINE void softplus(Vec* x) {
  Vec rounded[K], f[K], z[K], p[K];
  Power e[K];
  // z = e^-|x|, with log2(e) in two parts so that a large |x| costs no accuracy. min drops a NaN, which x keeps.
  EM_EACH z[k] = min(abs(x[k]), set(87.0f));
  EM_EACH rounded[k] = fma(z[k], set(-kLog2E), set(kMagic));
  EM_EACH f[k] = fms(z[k], set(-kLog2E), rounded[k] - set(kMagic));
  EM_EACH f[k] = fma(z[k], set(-kLog2ELow), f[k]);
  powers<K>(rounded, f, e);
  EM_EACH z[k] = value(e[k]);
  // log(1 + z) = z p(z) on [0, 1]: relative error 5.0e-8, and p is exactly 1 at 0. No division: that holds a processor's
  // multiplier for longer than it saves.
  EM_EACH p[k] = fma(set(5.36482316e-3f), z[k], set(-3.00657898e-2f));
  EM_EACH p[k] = fma(p[k], z[k], set(7.92045295e-2f));
  EM_EACH p[k] = fma(p[k], z[k], set(-1.37538016e-1f));
  EM_EACH p[k] = fma(p[k], z[k], set(1.91536546e-1f));
  EM_EACH p[k] = fma(p[k], z[k], set(-2.48571634e-1f));
  EM_EACH p[k] = fma(p[k], z[k], set(3.33213240e-1f));
  EM_EACH p[k] = fma(p[k], z[k], set(-4.99996483e-1f));
  EM_EACH p[k] = fma(p[k], z[k], set(1.0f));
  // max keeps its second operand where one is NaN.
  EM_EACH x[k] = fma(z[k], p[k], max(set(0.0f), x[k]));
}
