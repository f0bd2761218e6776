// Activate and the pools for any CPU.
#include "isa/generic/pointwise.h"

namespace binarize {
namespace {

struct Scalar {
  static uint32_t Above(const float* t, const float* threshold) {
    uint32_t mask = 0;
    for (size_t i = 0; i < kBlockLanes; ++i) mask |= static_cast<uint32_t>(t[i] > threshold[i]) << i;
    return mask;
  }
};

}  // namespace

const PointwiseKernels kScalarPointwise = {Activate<Scalar>, MaxPool, AveragePool};

}  // namespace binarize
