// AVX-512 kernels (F, BW, DQ, VL, VPOPCNTDQ, VNNI): one zmm holds the sixteen lanes of a block, vpopcntd counts them, and
// vpdpbusd sums the products of bytes.
//
// No std headers: this file has its own target flags (see core/kernels.h).
#include <immintrin.h>

#include "isa/generic/conv.h"
#include "isa/generic/depthwise.h"
#include "isa/generic/gate.h"
#include "isa/generic/int8_conv.h"
#include "isa/generic/pack.h"
#include "isa/generic/pointwise.h"
#include "isa/generic/zmm.h"

namespace binarize {
namespace {

struct Avx512 : generic::Zmm {
  // 6 x 4 sums are the most that does not spill; 7 x 2 are for rows of 7.
  static constexpr int kPixels = 7, kWidePixels = 6, kWideBlocks = 4;

  using Counter = __m512i;
  static constexpr size_t kCounterSteps = 0;
  BINARIZE_INLINE Counter Count(Counter c, Ints x) { return SubInts(c, _mm512_popcnt_epi32(x)); }

  using Tap = uint8_t;
  static constexpr int kDotPixels = 6, kDotBlocks = 4;
  static constexpr bool kUnrollsDots = false;
  BINARIZE_INLINE void StoreTaps(Tap* p, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static constexpr bool kStoresTriples = true;
  BINARIZE_INLINE void StoreTriples(Tap* p, Ints a, Ints b, Ints c) {
    constexpr int kOr = 0xFE;
    const Ints pixels = _mm512_ternarylogic_epi32(a, _mm512_slli_epi32(b, 8), _mm512_slli_epi32(c, 16), kOr);
    const __m128i three_of_four = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const Ints by_lane = _mm512_shuffle_epi8(pixels, _mm512_broadcast_i32x4(three_of_four));
    const Ints order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0);
    _mm512_mask_storeu_epi32(p, First(12), _mm512_permutexvar_epi32(order, by_lane));
  }
  BINARIZE_INLINE Ints Dot(Ints sum, Ints a, Ints w) { return _mm512_dpbusd_epi32(sum, a, w); }
};

}  // namespace

const Kernels kAvx512Kernels = {0, 4, 4, generic::Pack<Avx512>, generic::Conv<Avx512>, generic::Depthwise<Avx512>,
  generic::Activate<Avx512>, generic::MaxPool<Avx512>, generic::AveragePool<Avx512>,
  generic::RowSums<Avx512>, generic::Project<Avx512>,
  generic::Quantize<Avx512>, generic::Int8Sums<Avx512>, generic::Int8Finish<Avx512>};

}  // namespace binarize
