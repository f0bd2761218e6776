// What AVX2, FMA and F16C give every vector type of two registers of 256 bits; see vector.h. The anonymous namespace makes it
// a type of its own in each file that includes it, as they are compiled with different flags.
#pragma once

#include <immintrin.h>

#include "isa/generic/vector.h"

namespace binarize {
namespace generic {
namespace {

struct Ymm {
  struct Floats {
    __m256 low, high;
  };
  struct Ints {
    __m256i low, high;
  };

  static constexpr int kLinkSums = 7;
  static constexpr bool kFewRegisters = true;
  static constexpr bool kSumsInEpilogue = false;

  // Lanes [0, n) of eight; n may lie outside.
  BINARIZE_INLINE __m256i First(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // Of sixteen, those of each half.
  BINARIZE_INLINE Ints FirstLanes(size_t n) { return {First(static_cast<int>(n)), First(static_cast<int>(n) - 8)}; }

  BINARIZE_INLINE Floats Zero() { return Set(0.0f); }
  BINARIZE_INLINE Floats Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  BINARIZE_INLINE Floats Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  BINARIZE_INLINE Floats Load(const Half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  BINARIZE_INLINE Floats LoadFirst(const float* p, size_t n) {
    const Ints lanes = FirstLanes(n);
    return {_mm256_maskload_ps(p, lanes.low), _mm256_maskload_ps(p + 8, lanes.high)};
  }
  BINARIZE_INLINE Floats LoadFirst(const Half* p, size_t n) { return LoadTwo(p, n, p, n); }
  BINARIZE_INLINE Floats LoadTwo(const float* p, size_t n, const float* q, size_t end) {
    const Ints first = FirstLanes(n), both = FirstLanes(end);
    const Ints second = {_mm256_andnot_si256(first.low, both.low), _mm256_andnot_si256(first.high, both.high)};
    q -= n;  // lane n is q's first element
    return {_mm256_or_ps(_mm256_maskload_ps(p, first.low), _mm256_maskload_ps(q, second.low)),
            _mm256_or_ps(_mm256_maskload_ps(p + 8, first.high), _mm256_maskload_ps(q + 8, second.high))};
  }
  // Masks are of 32 bits: two elements each.
  BINARIZE_INLINE Floats LoadTwo(const Half* p, size_t n, const Half* q, size_t end) {
    if ((n | end) % 2 != 0) {
      Half copy[kLanes] = {};
      for (size_t i = 0; i < n; ++i) copy[i] = p[i];
      for (size_t i = n; i < end; ++i) copy[i] = q[i - n];
      return Load(copy);
    }
    const __m256i first = First(static_cast<int>(n / 2));
    const __m256i second = _mm256_andnot_si256(first, First(static_cast<int>(end / 2)));
    q -= n;
    const __m256i x = _mm256_or_si256(_mm256_maskload_epi32(reinterpret_cast<const int*>(p), first),
                                      _mm256_maskload_epi32(reinterpret_cast<const int*>(q), second));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  }
  BINARIZE_INLINE void Store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  BINARIZE_INLINE void Store(Half* p, Floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
  }
  BINARIZE_INLINE void StoreFirst(float* p, Floats x, size_t n) {
    const Ints lanes = FirstLanes(n);
    _mm256_maskstore_ps(p, lanes.low, x.low);
    _mm256_maskstore_ps(p + 8, lanes.high, x.high);
  }
  BINARIZE_INLINE void StoreFirst(Half* p, Floats x, size_t n) {
    Half copy[kLanes];
    Store(copy, x);
    for (size_t i = 0; i < n; ++i) p[i] = copy[i];
  }
  BINARIZE_INLINE Floats Add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  BINARIZE_INLINE Floats Mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  BINARIZE_INLINE Floats Max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  BINARIZE_INLINE Floats Min(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  BINARIZE_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  BINARIZE_INLINE Floats Leak(Floats t, Floats slope) {
    const __m256 zero = _mm256_setzero_ps();
    return {_mm256_blendv_ps(_mm256_mul_ps(slope.low, t.low), t.low, _mm256_cmp_ps(t.low, zero, _CMP_GT_OQ)),
            _mm256_blendv_ps(_mm256_mul_ps(slope.high, t.high), t.high, _mm256_cmp_ps(t.high, zero, _CMP_GT_OQ))};
  }
  BINARIZE_INLINE unsigned Above(Floats a, Floats b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ));
    return static_cast<unsigned>(low | high << 8);
  }
  BINARIZE_INLINE unsigned Above(Ints a, Ints b) {
    const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.low, b.low)));
    const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.high, b.high)));
    return static_cast<unsigned>(low | high << 8);
  }
  BINARIZE_INLINE Floats ToFloats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

  BINARIZE_INLINE Ints ZeroInts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  BINARIZE_INLINE Ints LoadInts(const void* p) {
    const __m256i* at = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  BINARIZE_INLINE Ints Broadcast(const uint32_t* p) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(*p));
    return {word, word};
  }
  BINARIZE_INLINE Ints AddInts(Ints a, Ints b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  BINARIZE_INLINE Ints SubInts(Ints a, Ints b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
  }
  BINARIZE_INLINE Ints MaxInts(Ints a, Ints b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  BINARIZE_INLINE Ints MinInts(Ints a, Ints b) {
    return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)};
  }
  BINARIZE_INLINE __m256i Choose(__m256 a, __m256 b, __m256i x, __m256i y) {
    return _mm256_blendv_epi8(y, x, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  BINARIZE_INLINE Ints Choose(Floats a, Floats b, Ints x, Ints y) {
    return {Choose(a.low, b.low, x.low, y.low), Choose(a.high, b.high, x.high, y.high)};
  }
  BINARIZE_INLINE Ints Round(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
  BINARIZE_INLINE void StoreInts(void* p, Ints x) {
    __m256i* at = static_cast<__m256i*>(p);
    _mm256_storeu_si256(at, x.low);
    _mm256_storeu_si256(at + 1, x.high);
  }
  BINARIZE_INLINE Ints LoadBytes(const uint8_t* p) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8));
    return {_mm256_cvtepu8_epi32(low), _mm256_cvtepu8_epi32(high)};
  }
  BINARIZE_INLINE Ints Xor(Ints a, Ints b) {
    return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
  }
  BINARIZE_INLINE Ints And(Ints a, Ints b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
  }
  BINARIZE_INLINE Ints XorAnd(Ints a, Ints b, Ints mask) { return And(Xor(a, b), mask); }
  BINARIZE_INLINE void Pin(Ints& x) { __asm__ volatile("" : "+x"(x.low), "+x"(x.high)); }
};

}  // namespace
}  // namespace generic
}  // namespace binarize
