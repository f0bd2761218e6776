// Activate and the pools with NEON.
#include <arm_neon.h>

#include "isa/generic/pointwise.h"

namespace binarize {
namespace {

struct Neon {
  static BINARIZE_POINTWISE_INLINE uint32_t Above(const float* t, const float* threshold) {
    const uint32_t bit_of_lane[4] = {1, 2, 4, 8};
    const uint32x4_t bit = vld1q_u32(bit_of_lane);
    uint32_t mask = 0;
    for (int i = 0; i < 16; i += 4) {
      mask |= vaddvq_u32(vandq_u32(vcgtq_f32(vld1q_f32(t + i), vld1q_f32(threshold + i)), bit)) << i;
    }
    return mask;
  }
};

}  // namespace

const PointwiseKernels kNeonPointwise = {Activate<Neon>, MaxPool, AveragePool};

}  // namespace binarize
