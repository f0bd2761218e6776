// Pack: sixteen channels per compare, four compares per word.
#pragma once

#include "isa/generic/vector.h"

namespace binarize {
namespace generic {

template <class V, class E>
void PackElements(const PackJob& job) {
  const typename V::Floats one_threshold = V::Set(job.threshold[0]);
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    const E* x = static_cast<const E*>(job.x) + pixel * job.channels;
    for (size_t plane = 0; plane < job.planes; ++plane) {
      uint64_t* bits = job.bits + (pixel * job.planes + plane) * job.words;
      const float* thresholds = job.threshold + plane * job.channels;
      for (size_t word = 0; word < job.words; ++word) {
        uint64_t packed = 0;
        for (size_t quarter = 0; quarter < 4; ++quarter) {
          const size_t channel = word * 64 + quarter * kLanes;
          if (channel >= job.channels) break;
          const size_t lanes = Min(kLanes, job.channels - channel);
          const typename V::Floats threshold =
              job.threshold_step == 0 ? one_threshold : V::LoadFirst(thresholds + channel, lanes);
          const uint64_t above = V::Above(V::LoadFirst(x + channel, lanes), threshold) & ((1u << lanes) - 1u);
          packed |= above << (quarter * kLanes);
        }
        bits[word] = packed;
      }
    }
  }
}

template <class V>
void Pack(const PackJob& job) {
  job.element == Element::kFloat16 ? PackElements<V, Half>(job) : PackElements<V, float>(job);
}

}  // namespace generic
}  // namespace binarize
