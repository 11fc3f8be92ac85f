// Four float32 lanes: AArch64 NEON. Included inside the namespace of its instruction set.
constexpr int kWidth = 4;

struct Vec {
  float32x4_t v;
};
struct Mask {
  uint32x4_t v;
};

static inline Vec set(float value) { return {vdupq_n_f32(value)}; }
static inline Vec load(const float* p) { return {vld1q_f32(p)}; }
static inline Vec load(const Float16* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}
static inline Vec load(const BFloat16* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16))};
}
static inline Vec broadcast(const float* p) { return {vld1q_dup_f32(p)}; }
static inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
static inline void store(Float16* p, Vec a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a.v)));
}
static inline void store(BFloat16* p, Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t even = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t chosen = vbslq_u32(vceqq_f32(a.v, a.v), even, quiet);
  vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(chosen, 16));
}

static inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
static inline Vec fms(Vec a, Vec b, Vec c) { return {vnegq_f32(vfmsq_f32(c.v, a.v, b.v))}; }
static inline Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
// max and min return NaN where either is NaN.
static inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }

// A table of one entry (vec_avx2.h has a longer one).
constexpr int kTableBits = 0;
static inline Vec lookup(Vec) { return set(1.0f); }
// a * 2^i, where the low bits of `magic` hold i (see exp2_small) and the result is a normal number.
static inline Vec scale(Vec a, Vec magic) {
  const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(magic.v), 23);
  return {vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a.v), shifted))};
}

static inline Mask none() { return {vdupq_n_u32(0)}; }
static inline Mask not_below_or_equal(Vec a, Vec b) { return {vmvnq_u32(vcleq_f32(a.v, b.v))}; }
static inline Mask unordered(Vec a) { return {vmvnq_u32(vceqq_f32(a.v, a.v))}; }
static inline Mask operator|(Mask a, Mask b) { return {vorrq_u32(a.v, b.v)}; }
static inline bool any(Mask a) { return vmaxvq_u32(a.v) != 0; }
static inline Vec select(Mask m, Vec yes, Vec no) { return {vbslq_f32(m.v, yes.v, no.v)}; }

static inline float sum(Vec a) { return vaddvq_f32(a.v); }
static inline void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v)));
}
