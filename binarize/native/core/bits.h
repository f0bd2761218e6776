// Bit-packing arithmetic shared by all files: words per pixel, popcount, zero masks.
// A bit 1 means +1, a bit 0 means -1; channel c is bit c % 64 of word c / 64.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace binarize {

constexpr int64_t kWordBits = 64;  // channels per word of a packed tensor
constexpr int64_t kHalfBits = 32;  // channels per uint32: what one kernel step consumes
constexpr int64_t kLanes = 16;     // output channels per block: uint32 lanes of a 512-bit register

constexpr int64_t CeilDiv(int64_t a, int64_t b) {  // b > 0; a may be negative
  return a / b + (a % b > 0 ? 1 : 0);
}
constexpr int64_t WordsFor(int64_t channels) { return CeilDiv(channels, kWordBits); }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

inline int Popcount32(uint32_t v) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_popcount(v);
#else
  v = v - ((v >> 1) & 0x55555555u);
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  return static_cast<int>((((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
#endif
}

inline int Popcount64(uint64_t v) {
  return Popcount32(static_cast<uint32_t>(v)) + Popcount32(static_cast<uint32_t>(v >> 32));
}

}  // namespace binarize
