// Bit-packing arithmetic shared by all files: words per pixel, popcount, zero masks.
// A bit 1 means +1, a bit 0 means -1; channel c is bit c % 64 of word c / 64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace binarize {

constexpr int64_t kWordBits = 64;  // channels per word of a packed tensor
constexpr int64_t kHalfBits = 32;  // channels per uint32: what one kernel step consumes
constexpr int64_t kLanes = 16;     // output channels per block: uint32 lanes of a 512-bit register

constexpr int64_t CeilDiv(int64_t a, int64_t b) {  // b > 0; a may be negative
  return a / b + (a % b > 0 ? 1 : 0);
}
constexpr int64_t WordsFor(int64_t channels) { return CeilDiv(channels, kWordBits); }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// In sums of 2, 4 and 8 bits: compilers know this form and use an instruction where the target has one. (Where it has
// none their builtin is a call.)
inline int Popcount64(uint64_t v) {
  v = v - ((v >> 1) & 0x5555555555555555u);
  v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
  return static_cast<int>((((v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u) >> 56);
}

// The bits of the last word of a pixel that have a channel.
inline uint64_t LastWordMask(int64_t channels) {
  const int64_t used = channels % kWordBits;
  return used == 0 ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
}

}  // namespace binarize
