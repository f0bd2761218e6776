// float16 to float32 and back, exactly as IEEE 754 says: the conversion of the kernels without instructions for it.
// Static functions only, because files with other target flags include this (see core/kernels.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/kernels.h"

namespace binarize {

static inline uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float Widen(float x) { return x; }

static inline float Widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 31u, fraction = h.bits & 1023u;
  if (exponent == 0) return FloatOf(BitsOf(static_cast<float>(fraction) * 0x1p-24f) | sign);  // zero and subnormal
  if (exponent == 31) return FloatOf(sign | 0x7f800000u | (fraction << 13) | (fraction != 0 ? 0x400000u : 0));
  return FloatOf(sign | ((exponent + 112) << 23) | (fraction << 13));
}

static inline void Narrow(float x, float* out) { *out = x; }

// To nearest, ties to even. A NaN becomes quiet and keeps the upper bits of its payload.
static inline void Narrow(float x, Half* out) {
  const uint32_t bits = BitsOf(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  uint16_t rounded;
  if (magnitude > 0x7f800000u) {
    rounded = static_cast<uint16_t>(0x7e00u | ((magnitude >> 13) & 0x3ffu));
  } else if (magnitude >= 0x477ff000u) {  // 65520: halfway between the largest float16 and the next
    rounded = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: normal
    const uint32_t odd = (magnitude >> 13) & 1u;
    rounded = static_cast<uint16_t>((magnitude - (112u << 23) + 0xfffu + odd) >> 13);
  } else {  // adding 0.5 leaves units of 2^-24 as the last bits of the sum, rounded by the addition
    rounded = static_cast<uint16_t>(BitsOf(FloatOf(magnitude) + 0.5f) - BitsOf(0.5f));
  }
  out->bits = static_cast<uint16_t>(sign | rounded);
}

// The largest u such that x > u exactly when x rounded to float16 is > threshold. Rounding is monotonic, so u lies at the
// middle between the largest float16 that is not above the threshold and the next one, or just below it when the middle
// rounds up.
static inline float ThresholdBeforeRounding(float threshold) {
  if (!(threshold <= FloatOf(0x7f7fffffu))) return threshold;  // infinity and NaN, which nothing is above
  Half low;
  Narrow(threshold, &low);
  if (Widen(low) > threshold) low.bits = static_cast<uint16_t>(low.bits & 0x8000u ? low.bits + 1 : low.bits - 1);
  if (low.bits == 0x8000u) low.bits = 0;  // both zeros are one value
  const bool negative = (low.bits & 0x8000u) != 0;
  const uint16_t next = static_cast<uint16_t>(negative ? low.bits - 1 : low.bits + 1);
  const float from = low.bits == 0xfc00u ? -65536.0f : Widen(low);
  const float to = next == 0x7c00u ? 65536.0f : Widen(Half{next});
  const float middle = from + (to - from) / 2;
  if (low.bits % 2 == 0) return middle;
  return FloatOf(middle > 0 ? BitsOf(middle) - 1 : BitsOf(middle) + 1);
}

}  // namespace binarize
