// Activate and the pools with AVX2 and FMA.
#include <immintrin.h>

#include "isa/generic/pointwise.h"

namespace binarize {
namespace {

struct Avx2 {
  static BINARIZE_POINTWISE_INLINE uint32_t Above(const float* t, const float* threshold) {
    const __m256 low = _mm256_cmp_ps(_mm256_loadu_ps(t), _mm256_loadu_ps(threshold), _CMP_GT_OQ);
    const __m256 high = _mm256_cmp_ps(_mm256_loadu_ps(t + 8), _mm256_loadu_ps(threshold + 8), _CMP_GT_OQ);
    return static_cast<uint32_t>(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8);
  }
};

}  // namespace

const PointwiseKernels kAvx2Pointwise = {Activate<Avx2>, MaxPool, AveragePool};

}  // namespace binarize
