// One float32 lane, for machines with no instruction set of ours. Included inside the namespace of its instruction set.
constexpr int kWidth = 1;

struct Vec {
  float v;
};
struct Mask {
  bool v;
};

static inline Vec set(float value) { return {value}; }
static inline Vec load(const float* p) { return {*p}; }
static inline Vec load(const Float16* p) { return {to_float(*p)}; }
static inline Vec load(const BFloat16* p) { return {to_float(*p)}; }
static inline Vec broadcast(const float* p) { return {*p}; }
static inline void store(float* p, Vec a) { *p = a.v; }
static inline void store(Float16* p, Vec a) { from_float(a.v, p); }
static inline void store(BFloat16* p, Vec a) { from_float(a.v, p); }

static inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
static inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
static inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
static inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
static inline Vec fms(Vec a, Vec b, Vec c) { return {a.v * b.v - c.v}; }
static inline Vec abs(Vec a) { return {bits_to_float(float_to_bits(a.v) & 0x7fffffffu)}; }
// max and min return b where either is NaN.
static inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
static inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }

// A table of one entry (vec_avx2.h has a longer one).
constexpr int kTableBits = 0;
static inline Vec lookup(Vec) { return set(1.0f); }
// a * 2^i, where the low bits of `magic` hold i (see exp2_small) and the result is a normal number.
static inline Vec scale(Vec a, Vec magic) {
  return {bits_to_float(float_to_bits(a.v) + (float_to_bits(magic.v) << 23))};
}

static inline Mask none() { return {false}; }
static inline Mask not_below_or_equal(Vec a, Vec b) { return {!(a.v <= b.v)}; }
static inline Mask unordered(Vec a) { return {a.v != a.v}; }
static inline Mask operator|(Mask a, Mask b) { return {a.v || b.v}; }
static inline bool any(Mask a) { return a.v; }
static inline Vec select(Mask m, Vec yes, Vec no) { return m.v ? yes : no; }

static inline float sum(Vec a) { return a.v; }
static inline void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
  out[0] = a.v;
  out[1] = b.v;
  out[2] = c.v;
  out[3] = d.v;
}
