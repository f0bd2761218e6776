// Pack: sixteen channels per compare. A block's floats are read once for all planes, and its bits stored as they are.
#pragma once

#include "isa/generic/vector.h"

namespace binarize {
namespace generic {

// The `lanes` channels behind a plane's whole blocks, and the bits behind them, which nobody uses.
template <class V, bool ONE, class E>
BINARIZE_INLINE void PackRest(const E* x, const float* threshold, size_t lanes, uint16_t* bits, uint16_t* end) {
  if (lanes > 0) {
    const typename V::Floats limit = ONE ? V::Set(*threshold) : V::LoadFirst(threshold, lanes);
    *bits++ = static_cast<uint16_t>(V::Above(V::LoadFirst(x, lanes), limit) & ((1u << lanes) - 1u));
  }
  while (bits != end) *bits++ = 0;
}

// ONE: all channels have one threshold. PLANES: how many there are, or 0: any number.
template <class V, bool ONE, size_t PLANES, class E>
void PackElements(const PackJob& job) {
  const size_t planes = PLANES != 0 ? PLANES : job.planes, threshold_step = ONE ? 0 : 1;
  const size_t whole = job.channels / kLanes, lanes = job.channels % kLanes, quarters = job.words * 4;
  const typename V::Floats one = V::Set(job.threshold[0]);
  uint16_t* bits = reinterpret_cast<uint16_t*>(job.bits);
  for (size_t pixel = 0; pixel < job.pixels; ++pixel, bits += planes * quarters) {
    const E* x = static_cast<const E*>(job.x) + pixel * job.channels;
    for (size_t block = 0; block < whole; ++block) {
      const typename V::Floats value = V::Load(x + block * kLanes);
      const float* threshold = job.threshold + block * kLanes;
      for (size_t plane = 0; plane < planes; ++plane, threshold += job.channels) {
        bits[plane * quarters + block] = static_cast<uint16_t>(V::Above(value, ONE ? one : V::Load(threshold)));
      }
    }
    if (whole == quarters) continue;
    const float* threshold = job.threshold + whole * kLanes * threshold_step;
    for (size_t plane = 0; plane < planes; ++plane, threshold += job.channels) {
      uint16_t* of_plane = bits + plane * quarters;
      PackRest<V, ONE>(x + whole * kLanes, threshold, lanes, of_plane + whole, of_plane + quarters);
    }
  }
}

template <class V, class E>
void PackElements(const PackJob& job) {
  if (job.threshold_step == 0) return PackElements<V, true, 1, E>(job);  // planes have a threshold per channel
  job.planes == 1 ? PackElements<V, false, 1, E>(job) : PackElements<V, false, 0, E>(job);
}

template <class V>
void Pack(const PackJob& job) {
  job.element == Element::kFloat16 ? PackElements<V, Half>(job) : PackElements<V, float>(job);
}

}  // namespace generic
}  // namespace binarize
