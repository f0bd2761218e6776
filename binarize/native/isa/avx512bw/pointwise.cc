// Activate and the pools with AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include "isa/generic/pointwise.h"

namespace binarize {
namespace {

struct Avx512Bw {
  static BINARIZE_POINTWISE_INLINE uint32_t Above(const float* t, const float* threshold) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(t), _mm512_loadu_ps(threshold), _CMP_GT_OQ);
  }
};

}  // namespace

const PointwiseKernels kAvx512BwPointwise = {Activate<Avx512Bw>, MaxPool, AveragePool};

}  // namespace binarize
