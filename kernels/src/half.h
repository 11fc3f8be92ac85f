// float16 and bfloat16 to and from float32, one at a time, in integer arithmetic: the same bits as the vector
// conversions (round to nearest even, infinities and NaN kept) on any machine.
#ifndef EDGEMAMBA_SRC_HALF_H
#define EDGEMAMBA_SRC_HALF_H

#include <stdint.h>
#include <string.h>

namespace edgemamba {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// `static`, not `inline`: the per-instruction-set files include this too, and the linker must not merge their copies.
static float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] static float to_float(float value) { return value; }

[[maybe_unused]] static float to_float(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

[[maybe_unused]] static float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Scaling by 2^112 moves the exponent to its new bias and makes subnormals normal.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * bits_to_float(0x77800000u)));
}

[[maybe_unused]] static void from_float(float value, float* out) { *out = value; }

[[maybe_unused]] static void from_float(float value, BFloat16* out) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40u);
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
}

[[maybe_unused]] static void from_float(float value, Float16* out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u | (rest >> 13 & 0x3ffu);
  } else if (rest >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // below 2^-14: let the float adder round to multiples of 2^-24
    half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_HALF_H
