// AVX2 kernels (AVX2, FMA, F16C): two ymm hold the sixteen lanes of a block.
//
// Dense convolutions count by table (isa/generic/lookup.h): a register holds one nibble of the weights of 32 output
// channels, and vpshufb looks up how many of its bits differ from the pixel's nibble. Blocks with masks count the ones
// of whole words, nibble by nibble.
//
// No std headers: this file has its own target flags (see core/kernels.h).
#include <immintrin.h>

#include "isa/generic/conv.h"
#include "isa/generic/depthwise.h"
#include "isa/generic/gate.h"
#include "isa/generic/int8_conv.h"
#include "isa/generic/lookup.h"
#include "isa/generic/pack.h"
#include "isa/generic/pointwise.h"
#include "isa/generic/ymm.h"

namespace binarize {
namespace {

struct Avx2 : generic::Ymm {
  static constexpr int kPixels = 3, kWidePixels = 3, kWideBlocks = 1;

  // Pairs of int16: vpmaddubsw, of bytes, would saturate, and to widen bytes for each product costs as much as two of them.
  using Tap = int16_t;
  static constexpr int kDotPixels = 4, kDotBlocks = 1;
  static constexpr bool kStoresTriples = false;
  static constexpr bool kUnrollsDots = true;
  BINARIZE_INLINE void StoreTaps(Tap* p, Ints x) {
    const __m256i taps = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), taps);
  }
  BINARIZE_INLINE Ints Dot(Ints sum, Ints a, Ints w) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, w.low)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, w.high))};
  }

  // Counters of bytes: a step adds at most 8.
  using Counter = Ints;
  static constexpr size_t kCounterSteps = 31;
  BINARIZE_INLINE Counter ZeroCounter() { return ZeroInts(); }
  BINARIZE_INLINE __m256i OnesOfBytes(__m256i x) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_and_si256(x, nibble), high = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
    return _mm256_add_epi8(_mm256_shuffle_epi8(ones, low), _mm256_shuffle_epi8(ones, high));
  }
  BINARIZE_INLINE Counter Count(Counter c, Ints x) {
    return {_mm256_add_epi8(c.low, OnesOfBytes(x.low)), _mm256_add_epi8(c.high, OnesOfBytes(x.high))};
  }
  BINARIZE_INLINE __m256i SumOfBytes(__m256i bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  BINARIZE_INLINE Ints Counts(Counter c) { return {SumOfBytes(c.low), SumOfBytes(c.high)}; }

  // Tables: 2 pixels x 128 channels. Finding a table costs as much as two of its uses, so registers are better spent on
  // channels than on pixels.
  using Panel = __m256i;
  static constexpr size_t kPanelBlocks = 2;
  static constexpr int kPanelPixels = 4, kPanels = 4, kPanelSums = 8;
  static constexpr bool kSharesTables = true;
  BINARIZE_INLINE Panel ZeroPanel() { return _mm256_setzero_si256(); }
  BINARIZE_INLINE Panel LoadPanel(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  BINARIZE_INLINE Panel LoadTable(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  BINARIZE_INLINE Panel LookUp(Panel sums, Panel table, Panel weights) {
    return _mm256_add_epi8(sums, _mm256_shuffle_epi8(table, weights));
  }
  BINARIZE_INLINE Panel AddLowNibbles(Panel sums, Panel x) {
    return _mm256_add_epi8(sums, _mm256_and_si256(x, _mm256_set1_epi8(15)));
  }
  // A product, not a shift: shifts share their units with the shuffles on Zen.
  BINARIZE_INLINE Panel AddHighNibbles(Panel sums, Panel x) {
    return _mm256_add_epi16(sums, _mm256_mulhi_epu16(x, _mm256_set1_epi16(1 << 12)));
  }
  BINARIZE_INLINE Panel HighNibbles(Panel high, Panel low) {
    const __m256i upper = _mm256_andnot_si256(_mm256_set1_epi16(255), low);
    return _mm256_sub_epi16(high, _mm256_srli_epi16(upper, 4));
  }
  BINARIZE_INLINE void PinPanel(Panel& x) { __asm__ volatile("" : "+x"(x)); }
  BINARIZE_INLINE void StorePanel(Panel x, uint16_t* counts) {
    __m256i* at = reinterpret_cast<__m256i*>(counts);
    _mm256_store_si256(at, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)));
    _mm256_store_si256(at + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)));
  }
  BINARIZE_INLINE void AddPanel(Panel x, uint16_t* counts) {
    __m256i* at = reinterpret_cast<__m256i*>(counts);
    const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x));
    const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1));
    _mm256_store_si256(at, _mm256_add_epi16(_mm256_load_si256(at), low));
    _mm256_store_si256(at + 1, _mm256_add_epi16(_mm256_load_si256(at + 1), high));
  }
  BINARIZE_INLINE Ints LoadCounts(const uint8_t* counts) { return LoadBytes(counts); }
  BINARIZE_INLINE Ints LoadCounts(const uint16_t* counts) {
    const __m128i* at = reinterpret_cast<const __m128i*>(counts);
    return {_mm256_cvtepu16_epi32(_mm_load_si128(at)), _mm256_cvtepu16_epi32(_mm_load_si128(at + 1))};
  }

  static constexpr bool kComparesCounts = true;
  struct CountLimits {
    __m256i first, second;  // of a block each
  };
  // base - count > limit, or base - 2 * count > limit. Saturates, which changes no comparison with a count below 2^15 - 1.
  BINARIZE_INLINE __m256i CountLimitsOfBlock(const int32_t* base, const int32_t* limits, bool once) {
    Ints room = SubInts(LoadInts(base), LoadInts(limits));
    if (!once) {
      const __m256i one = _mm256_set1_epi32(1);
      room = AddInts(room, {one, one});
      room = {_mm256_srai_epi32(room.low, 1), _mm256_srai_epi32(room.high, 1)};
    }
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(room.low, room.high), 0xD8);
  }
  BINARIZE_INLINE CountLimits MakeCountLimits(const int32_t* base, const int32_t* limits, bool once) {
    return {CountLimitsOfBlock(base, limits, once),
            CountLimitsOfBlock(base + generic::kLanes, limits + generic::kLanes, once)};
  }
  BINARIZE_INLINE void StoreBelow(uint16_t* bits, const uint16_t* counts, CountLimits limits) {
    const __m256i* at = reinterpret_cast<const __m256i*>(counts);
    const __m256i first = _mm256_cmpgt_epi16(limits.first, _mm256_load_si256(at));
    const __m256i second = _mm256_cmpgt_epi16(limits.second, _mm256_load_si256(at + 1));
    const int mask = _mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8));
    __builtin_memcpy(bits, &mask, sizeof mask);
  }

  using Words = __m256i;
  static constexpr size_t kWords = 4;
  BINARIZE_INLINE Words ZeroWords() { return _mm256_setzero_si256(); }
  BINARIZE_INLINE Words LoadWords(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  BINARIZE_INLINE Words LoadFirstWords(const void* p, size_t n) {
    if (n == kWords) return LoadWords(p);
    const __m256i wanted = _mm256_cmpgt_epi64(_mm256_set1_epi64x(static_cast<long long>(n)), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_maskload_epi64(static_cast<const long long*>(p), wanted);
  }
  BINARIZE_INLINE void StoreWords(void* p, Words x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  BINARIZE_INLINE Words XorWords(Words a, Words b) { return _mm256_xor_si256(a, b); }
  BINARIZE_INLINE Words AndWords(Words a, Words b) { return _mm256_and_si256(a, b); }
  BINARIZE_INLINE Words Parity(Words a, Words b, Words c) { return XorWords(XorWords(a, b), c); }
  BINARIZE_INLINE Words Majority(Words a, Words b, Words c) {
    return _mm256_or_si256(AndWords(a, b), AndWords(c, _mm256_or_si256(a, b)));
  }

  // 32 bits of a plane become bytes of 0 or -1; subtracting is adding.
  template <int PLANES>
  BINARIZE_INLINE void Spread(const uint64_t* planes, size_t step, uint8_t* doubled) {
    const __m256i own_byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                              2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i own_bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    for (size_t half = 0; half < 2; ++half) {
      __m256i bytes = _mm256_setzero_si256();
      BINARIZE_UNROLL
      for (int p = 0; p < PLANES; ++p) {
        const __m256i bits = _mm256_set1_epi32(static_cast<int>(planes[p * step] >> (32 * half)));
        const __m256i there = _mm256_and_si256(_mm256_shuffle_epi8(bits, own_byte), own_bit);
        const __m256i set = _mm256_cmpeq_epi8(there, own_bit);
        bytes = _mm256_add_epi8(bytes, _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(2 << p))));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(doubled + 32 * half), bytes);
    }
  }
};

}  // namespace

const Kernels kAvx2Kernels = {Avx2::kPanelBlocks, Avx2::kPanels * Avx2::kPanelBlocks, 2, generic::Pack<Avx2>,
                              generic::LookupConv<Avx2>, generic::Depthwise<Avx2>,
  generic::Activate<Avx2>, generic::MaxPool<Avx2>, generic::AveragePool<Avx2>,
  generic::RowSums<Avx2>, generic::Project<Avx2>,
  generic::Quantize<Avx2>, generic::Int8Sums<Avx2>, generic::Int8Finish<Avx2>};

}  // namespace binarize
