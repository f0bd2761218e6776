// AVX-VNNI kernels (with AVX2, FMA and F16C): vpdpbusd sums the products of bytes of an int8 convolution. All else is AVX2's.
//
// No std headers: this file has its own target flags (see core/kernels.h).
#include <immintrin.h>

#include "isa/generic/int8_conv.h"
#include "isa/generic/ymm.h"

namespace binarize {
namespace {

struct AvxVnni : generic::Ymm {
  using Tap = uint8_t;
  static constexpr int kDotPixels = 6, kDotBlocks = 1;
  static constexpr bool kUnrollsDots = false;
  static constexpr bool kStoresTriples = false;
  BINARIZE_INLINE void StoreTaps(Tap* p, Ints x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  BINARIZE_INLINE Ints Dot(Ints sum, Ints a, Ints w) {
    return {_mm256_dpbusd_avx_epi32(sum.low, a.low, w.low), _mm256_dpbusd_avx_epi32(sum.high, a.high, w.high)};
  }
};

}  // namespace

void AvxVnniQuantize(const QuantizeJob& job) { generic::Quantize<AvxVnni>(job); }
void AvxVnniInt8Sums(const Int8Const& k, const Int8SumsJob& job) { generic::Int8Sums<AvxVnni>(k, job); }

}  // namespace binarize
