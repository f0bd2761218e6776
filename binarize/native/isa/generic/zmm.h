// What AVX-512 F, BW, DQ and VL give every vector type of 512 bits; see vector.h. The anonymous namespace makes it a
// type of its own in each file that includes it, as they are compiled with different flags.
#pragma once

#include <immintrin.h>

#include "isa/generic/vector.h"

namespace binarize {
namespace generic {
namespace {

struct Zmm {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr bool kFewRegisters = false;
  static constexpr int kLinkSums = 28;
  static constexpr bool kSumsInEpilogue = true;

  BINARIZE_INLINE __mmask16 First(size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

  BINARIZE_INLINE Floats Zero() { return _mm512_setzero_ps(); }
  BINARIZE_INLINE Floats Set(float x) { return _mm512_set1_ps(x); }
  BINARIZE_INLINE Floats Load(const float* p) { return _mm512_loadu_ps(p); }
  BINARIZE_INLINE Floats Load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  BINARIZE_INLINE Floats LoadFirst(const float* p, size_t n) { return _mm512_maskz_loadu_ps(First(n), p); }
  BINARIZE_INLINE Floats LoadFirst(const Half* p, size_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(First(n), p));
  }
  BINARIZE_INLINE Floats LoadTwo(const float* p, size_t n, const float* q, size_t end) {
    const __mmask16 second = static_cast<__mmask16>(First(end) & ~First(n));
    return _mm512_mask_loadu_ps(LoadFirst(p, n), second, q - n);
  }
  BINARIZE_INLINE Floats LoadTwo(const Half* p, size_t n, const Half* q, size_t end) {
    const __mmask16 second = static_cast<__mmask16>(First(end) & ~First(n));
    return _mm512_cvtph_ps(_mm256_mask_loadu_epi16(_mm256_maskz_loadu_epi16(First(n), p), second, q - n));
  }
  BINARIZE_INLINE void Store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  BINARIZE_INLINE void Store(Half* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  BINARIZE_INLINE void StoreFirst(float* p, Floats x, size_t n) { _mm512_mask_storeu_ps(p, First(n), x); }
  BINARIZE_INLINE void StoreFirst(Half* p, Floats x, size_t n) {
    _mm256_mask_storeu_epi16(p, First(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  BINARIZE_INLINE Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  BINARIZE_INLINE Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  BINARIZE_INLINE Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  BINARIZE_INLINE Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  BINARIZE_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  BINARIZE_INLINE Floats Leak(Floats t, Floats slope) {
    return _mm512_mask_mul_ps(t, _mm512_cmp_ps_mask(t, Zero(), _CMP_NGT_UQ), slope, t);
  }
  BINARIZE_INLINE unsigned Above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  BINARIZE_INLINE unsigned Above(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
  BINARIZE_INLINE Floats ToFloats(Ints x) { return _mm512_cvtepi32_ps(x); }

  BINARIZE_INLINE Ints ZeroInts() { return _mm512_setzero_si512(); }
  BINARIZE_INLINE Ints LoadInts(const void* p) { return _mm512_loadu_si512(p); }
  BINARIZE_INLINE Ints Broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  BINARIZE_INLINE void Pin(__m512i& x) { __asm__ volatile("" : "+v"(x)); }
  BINARIZE_INLINE Ints AddInts(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  BINARIZE_INLINE Ints SubInts(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  BINARIZE_INLINE Ints MaxInts(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  BINARIZE_INLINE Ints MinInts(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
  BINARIZE_INLINE Ints Choose(Floats a, Floats b, Ints x, Ints y) {
    return _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x);
  }
  BINARIZE_INLINE Ints Round(Floats x) { return _mm512_cvtps_epi32(x); }
  BINARIZE_INLINE void StoreInts(void* p, Ints x) { _mm512_storeu_si512(p, x); }
  BINARIZE_INLINE Ints LoadBytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  BINARIZE_INLINE Ints Xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
  BINARIZE_INLINE Ints And(Ints a, Ints b) { return _mm512_and_si512(a, b); }
  BINARIZE_INLINE Ints XorAnd(Ints a, Ints b, Ints mask) {
    constexpr int kXorThenAnd = 0x28;
    return _mm512_ternarylogic_epi32(a, b, mask, kXorThenAnd);
  }

  using Words = __m512i;
  static constexpr size_t kWords = 8;
  BINARIZE_INLINE Words ZeroWords() { return _mm512_setzero_si512(); }
  BINARIZE_INLINE Words LoadWords(const void* p) { return _mm512_loadu_si512(p); }
  BINARIZE_INLINE Words LoadFirstWords(const void* p, size_t n) {
    return _mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << n) - 1u), p);
  }
  BINARIZE_INLINE void StoreWords(void* p, Words x) { _mm512_storeu_si512(p, x); }
  BINARIZE_INLINE Words XorWords(Words a, Words b) { return _mm512_xor_si512(a, b); }
  BINARIZE_INLINE Words AndWords(Words a, Words b) { return _mm512_and_si512(a, b); }
  BINARIZE_INLINE Words Parity(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  BINARIZE_INLINE Words Majority(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0xE8); }

  // Planes are masks of bytes.
  template <int PLANES>
  BINARIZE_INLINE void Spread(const uint64_t* planes, size_t step, uint8_t* doubled) {
    __m512i bytes = _mm512_maskz_set1_epi8(planes[0], 2);
    BINARIZE_UNROLL
    for (int p = 1; p < PLANES; ++p) {
      bytes = _mm512_mask_add_epi8(bytes, planes[p * step], bytes, _mm512_set1_epi8(static_cast<char>(2 << p)));
    }
    _mm512_storeu_si512(doubled, bytes);
  }
};

}  // namespace
}  // namespace generic
}  // namespace binarize
