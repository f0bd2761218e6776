// What the kernels written over a vector type ask of it. Each isa/<name>/kernels.cc defines such a type `V` in its
// anonymous namespace, so that every template instantiated with it stays inside that file (see core/kernels.h).
//
// A vector holds the sixteen lanes of a block, in as many registers as the instruction set needs:
//
//   Floats, Ints                    sixteen float32, sixteen uint32
//   Zero(), Set(float), Broadcast(const uint32_t*)
//   Load(const float*), Load(const Half*), LoadInts(const void*)
//   LoadFirst(p, n)                 the first n lanes; memory of the others is not touched, their value is any
//   LoadTwo(p, n, q, end)           lanes [0, n) from p on and lanes [n, end) from q on
//   Store(p, x), StoreFirst(p, x, n)
//   Add, Mul, Fma(a, b, c)          a * b + c rounded once
//   Max, Min                        Max(a, b) and Min(a, b) are b when they are equal or one is NaN
//   Leak(t, slope)                  t > 0 ? t : slope * t
//   Above(a, b)                     bit i: a[i] > b[i], of floats or of int32
//   ToFloats(x)                     of int32
//   Pin(x)                          counters or ints are final here: the compiler may not move their arithmetic past it,
//                                   and holds them in registers
//   Xor(a, b), And(a, b), XorAnd(a, b, mask)   (a ^ b) & mask
//
//   Counter, kCounterSteps          counts of ones by lane, for at most so many steps
//   ZeroCounter(), Count(c, x), Counts(c), AddInts(a, b), ZeroInts()
//   ... or kCounterSteps is 0, a Counter is Ints that may start anywhere, and Count(c, x) subtracts the ones
//
//   MaxInts, MinInts, SubInts       of int32
//   Choose(a, b, x, y)              a > b ? x : y, of floats a and b and ints x and y
//   StoreInts(p, x), LoadBytes(p)   sixteen int32; from sixteen bytes
//   Round(x)                        to the nearest int32, ties to even
//   Tap, StoreTaps(p, x)            what an int8 convolution multiplies: uint8_t, or int16_t; values in [0, 255] to taps
//   kStoresTriples, StoreTriples(p, a, b, c)   taps of three channels, side by side for each of sixteen pixels
//   Dot(sum, a, w)                  sum + the products of a lane's taps in a and its weights, int8_t or int16_t, in w
//   kDotPixels, kDotBlocks          the tile of sums that fits the registers
//   kUnrollsDots                    short rows of the kernel are unrolled, as a loop's own instructions weigh there, and
//                                   sums pinned
//
//   kLinkSums                       how many vectors fit the registers beside one more
//   kFewRegisters                   blocks of a depthwise conv finish one by one, not four together: plain_epilogue.h,
//                                   with LoadCounts(const uint8_t*)
//   kSumsInEpilogue                 sums of the link's channels are formed by the epilogue: registers are left for them
//
//   Words                           registers for the bit-sliced counters of Depthwise; see depthwise.h
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/kernels.h"

#define BINARIZE_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define BINARIZE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BINARIZE_UNROLL _Pragma("GCC unroll 16")
#endif

// What nearly every tile does: its code lies in one run, and a processor fetches no other.
#define BINARIZE_LIKELY(condition) __builtin_expect(static_cast<bool>(condition), true)
#define BINARIZE_UNLIKELY(condition) __builtin_expect(static_cast<bool>(condition), false)

namespace binarize {
namespace generic {

constexpr size_t kLanes = 16;

// Asks for the line at `p`, which may lie outside of all memory.
BINARIZE_INLINE void Prefetch(const void* p) { __builtin_prefetch(p); }
BINARIZE_INLINE void PrefetchToWrite(const void* p) { __builtin_prefetch(p, 1); }

BINARIZE_INLINE size_t Min(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace generic
}  // namespace binarize
