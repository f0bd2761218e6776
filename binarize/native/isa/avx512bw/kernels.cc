// AVX-512 kernels for CPUs without VPOPCNTDQ (F, BW, DQ, VL: Skylake-X to Cooper Lake): sixteen lanes are one zmm, and
// dense convolutions count by table (isa/generic/lookup.h).
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
#include "isa/generic/zmm.h"

namespace binarize {
namespace {

struct Avx512Bw : generic::Zmm {
  static constexpr int kPixels = 4, kWidePixels = 4, kWideBlocks = 1;

  // Counters of bytes: a step adds at most 8.
  using Counter = __m512i;
  static constexpr size_t kCounterSteps = 31;
  BINARIZE_INLINE Counter ZeroCounter() { return ZeroInts(); }
  BINARIZE_INLINE Counter Count(Counter c, Ints x) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i ones = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_and_si512(x, nibble), high = _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble);
    const __m512i both = _mm512_add_epi8(_mm512_shuffle_epi8(ones, low), _mm512_shuffle_epi8(ones, high));
    return _mm512_add_epi8(c, both);
  }
  BINARIZE_INLINE Ints Counts(Counter c) {
    const __m512i pairs = _mm512_maddubs_epi16(c, _mm512_set1_epi8(1));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }

  // Pairs of int16: vpmaddubsw, of bytes, would saturate, and to widen bytes for each product costs as much as two of them.
  using Tap = int16_t;
  static constexpr int kDotPixels = 4, kDotBlocks = 2;
  static constexpr bool kStoresTriples = false;
  static constexpr bool kUnrollsDots = false;
  BINARIZE_INLINE void StoreTaps(Tap* p, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }
  BINARIZE_INLINE Ints Dot(Ints sum, Ints a, Ints w) { return AddInts(sum, _mm512_madd_epi16(a, w)); }

  // Tables: 6 pixels x 128 channels in bytes.
  using Panel = __m512i;
  static constexpr size_t kPanelBlocks = 4;
  static constexpr int kPanelPixels = 6, kPanels = 2, kPanelSums = 12;
  static constexpr bool kSharesTables = false, kComparesCounts = false;
  BINARIZE_INLINE Panel ZeroPanel() { return _mm512_setzero_si512(); }
  BINARIZE_INLINE Panel LoadPanel(const uint8_t* p) { return _mm512_loadu_si512(p); }
  BINARIZE_INLINE Panel LoadTable(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  BINARIZE_INLINE Panel LookUp(Panel sums, Panel table, Panel weights) {
    return _mm512_add_epi8(sums, _mm512_shuffle_epi8(table, weights));
  }
  BINARIZE_INLINE void PinPanel(Panel& x) { Pin(x); }
  BINARIZE_INLINE void StorePanel(Panel x, uint16_t* counts) {
    _mm512_store_si512(counts, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(x)));
    _mm512_store_si512(counts + 32, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(x, 1)));
  }
  BINARIZE_INLINE void AddPanel(Panel x, uint16_t* counts) {
    const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(x));
    const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(x, 1));
    _mm512_store_si512(counts, _mm512_add_epi16(_mm512_load_si512(counts), low));
    _mm512_store_si512(counts + 32, _mm512_add_epi16(_mm512_load_si512(counts + 32), high));
  }
  BINARIZE_INLINE Ints LoadCounts(const uint16_t* counts) {
    return _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(counts)));
  }
};

}  // namespace

const Kernels kAvx512BwKernels = {Avx512Bw::kPanelBlocks, 4, 2, generic::Pack<Avx512Bw>, generic::LookupConv<Avx512Bw>,
                                  generic::Depthwise<Avx512Bw>,
  generic::Activate<Avx512Bw>, generic::MaxPool<Avx512Bw>, generic::AveragePool<Avx512Bw>,
  generic::RowSums<Avx512Bw>, generic::Project<Avx512Bw>,
  generic::Quantize<Avx512Bw>, generic::Int8Sums<Avx512Bw>, generic::Int8Finish<Avx512Bw>};

}  // namespace binarize
