// Activate and the pools: docs/ops.md. Sixteen channels at a time, whole maps once through the registers.
#pragma once

#include "core/pool_window.h"
#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// Where a few neighbouring pixels lie. Found once for all their channels: a compiler that sees the stores in between would
// find it again for each block.
template <class X, class E>
struct ActivatePixels {
  const X* x;
  const E* residual;  // null when neutral
  E* y;               // null when not wanted
  E* link;            // of ActivateLink
  uint16_t* bits;     // null when not wanted
  size_t x_step, step, link_step, bit_step;  // from pixel to pixel
  size_t planes, plane_step;
};

template <class X, class E>
BINARIZE_INLINE ActivatePixels<X, E> FindPixels(const ActivateJob& job, size_t pixel) {
  ActivatePixels<X, E> p;
  p.x_step = job.x_step, p.step = job.channels, p.link_step = job.link_channels;
  p.planes = job.planes, p.plane_step = job.words * 4, p.bit_step = p.planes * p.plane_step;
  p.x = static_cast<const X*>(job.x) + pixel * p.x_step;
  p.residual = job.residual == nullptr ? nullptr : static_cast<const E*>(job.residual) + pixel * p.step;
  p.y = job.y == nullptr ? nullptr : static_cast<E*>(job.y) + pixel * p.step;
  p.link = static_cast<E*>(job.link) + (job.link == nullptr ? 0 : pixel * p.link_step);
  p.bits = job.bits == nullptr ? nullptr : reinterpret_cast<uint16_t*>(job.bits) + pixel * p.bit_step;
  return p;
}

// Sixteen channels, or the first `lanes` of them, of PIXELS pixels: their parameters are loaded once. `values` become what
// y is before it is rounded.
template <class V, bool FULL, class X, class E, int PIXELS>
BINARIZE_INLINE void ActivateTile(const ActivateJob& job, const ActivatePixels<X, E>& p, size_t channel, size_t lanes,
                                  typename V::Floats (&values)[1][PIXELS]) {
  using Floats = typename V::Floats;
  Floats(&t)[PIXELS] = values[0];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = Read<V, FULL>(p.x + m * p.x_step + channel, lanes);
  if (job.gate != nullptr) {
    const Floats gate = Read<V, FULL>(job.gate + channel, lanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Mul(t[m], gate);
  }
  const Floats scale = V::Load(job.scale + channel), bias = V::Load(job.bias + channel);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(t[m], scale, bias);
  if (p.residual != nullptr) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(t[m], Read<V, FULL>(p.residual + m * p.step + channel, lanes));
  }
  const Floats slope = V::Load(job.slope + channel), shift = V::Load(job.shift + channel);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(V::Leak(t[m], slope), shift);
  if (p.y != nullptr) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) Write<V, FULL>(p.y + m * p.step + channel, t[m], lanes);
  }
  if (p.bits != nullptr) {
    uint16_t* bits = p.bits + channel / kLanes;
    const float* threshold = job.threshold + channel;
    WriteBits<V, FULL>(bits, p.bit_step, values, threshold, lanes);
    for (size_t plane = 1; BINARIZE_UNLIKELY(plane < p.planes); ++plane) {
      bits += p.plane_step;
      threshold += (p.step + kLanes - 1) / kLanes * kLanes;
      WriteBits<V, FULL>(bits, p.bit_step, values, threshold, lanes);
    }
  }
}

// The sixteen channels from `channel` on, or as many of them as there are.
template <class V, class X, class E, int PIXELS>
BINARIZE_INLINE void ActivateBlock(const ActivateJob& job, const ActivatePixels<X, E>& p, size_t channel,
                                   typename V::Floats (&values)[1][PIXELS]) {
  if (BINARIZE_LIKELY(channel + kLanes <= p.step)) {
    ActivateTile<V, true, X, E, PIXELS>(job, p, channel, kLanes, values);
  } else {
    ActivateTile<V, false, X, E, PIXELS>(job, p, channel, p.step - channel, values);
  }
}

// -0 in the lanes from `lanes` on, the neutral element of addition.
template <class V>
BINARIZE_INLINE typename V::Floats KeepFirst(typename V::Floats x, size_t lanes) {
  float kept[kLanes];
  V::Store(kept, x);
  for (size_t lane = lanes; lane < kLanes; ++lane) kept[lane] = -0.0f;
  return V::Load(kept);
}

// The sixteen channels of the link from `first` on, and of the map every sixteen that are summed there.
template <class V, class X, class E, int PIXELS>
BINARIZE_INLINE void ActivateLink(const ActivateJob& job, const ActivatePixels<X, E>& p, size_t first) {
  typename V::Floats values[1][PIXELS], sums[PIXELS];
  ActivateTile<V, true, X, E, PIXELS>(job, p, first, kLanes, values);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) sums[m] = values[0][m];
  for (size_t channel = first + p.link_step; channel < p.step; channel += p.link_step) {
    ActivateBlock<V, X, E, PIXELS>(job, p, channel, values);
    if (BINARIZE_UNLIKELY(channel + kLanes > p.step)) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) values[0][m] = KeepFirst<V>(values[0][m], p.step - channel);
    }
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) sums[m] = V::Add(sums[m], values[0][m]);
  }
  const typename V::Floats gamma = V::Load(job.gamma + first);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) V::Store(p.link + m * p.link_step + first, V::Mul(sums[m], gamma));
}

template <class V, class X, class E, bool LINK, int PIXELS>
BINARIZE_INLINE void ActivateChannels(const ActivateJob& job, size_t pixel) {
  const ActivatePixels<X, E> p = FindPixels<X, E>(job, pixel);
  if constexpr (LINK) {
    for (size_t first = 0; first < p.link_step; first += kLanes) ActivateLink<V, X, E, PIXELS>(job, p, first);
  } else {
    typename V::Floats values[1][PIXELS];
    for (size_t channel = 0; channel < p.step; channel += kLanes) {
      ActivateBlock<V, X, E, PIXELS>(job, p, channel, values);
    }
  }
  if (p.bits == nullptr) return;
  for (size_t plane = 0; plane < PIXELS * p.planes; ++plane) {
    uint16_t* bits = p.bits + plane * p.plane_step;  // of the last word, those unused
    for (size_t quarter = (p.step + kLanes - 1) / kLanes; quarter < p.plane_step; ++quarter) bits[quarter] = 0;
  }
}

template <class V, class X, class E, bool LINK>
void ActivateMap(const ActivateJob& job) {
  constexpr int kPixels = LINK && V::kFewRegisters ? 2 : 4;
  size_t pixel = 0;
  for (; pixel + kPixels <= job.pixels; pixel += kPixels) ActivateChannels<V, X, E, LINK, kPixels>(job, pixel);
  for (; pixel < job.pixels; ++pixel) ActivateChannels<V, X, E, LINK, 1>(job, pixel);
}

template <class V, class X, class E>
void ActivateElements(const ActivateJob& job) {
  job.link == nullptr ? ActivateMap<V, X, E, false>(job) : ActivateMap<V, X, E, true>(job);
}

template <class V>
void Activate(const ActivateJob& job) {
  if (job.stream == Element::kFloat32) return ActivateElements<V, float, float>(job);
  if (job.x_element == Element::kFloat32) return ActivateElements<V, float, Half>(job);
  return ActivateElements<V, Half, Half>(job);
}

struct Larger {
  static constexpr bool kAverage = false;
  template <class V>
  BINARIZE_INLINE typename V::Floats Join(typename V::Floats joined, typename V::Floats x) {
    return V::Max(x, joined);
  }
};
struct Sum {
  static constexpr bool kAverage = true;
  template <class V>
  BINARIZE_INLINE typename V::Floats Join(typename V::Floats joined, typename V::Floats x) {
    return V::Add(joined, x);
  }
};

// BLOCKS blocks of one output pixel, the last one of `lanes` channels: the rows of the window, then what they gave.
template <class V, class Op, bool FULL, int BLOCKS, class E>
BINARIZE_INLINE void PoolBlocks(const PoolJob& job, const PoolWindow& w, size_t channel, size_t lanes, E* y) {
  using Floats = typename V::Floats;
  Floats joined[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) joined[n] = V::Set(w.start);
  for (size_t r = 0; r < w.rows.count; ++r) {
    const size_t row = (w.rows.start + r * job.dilation_h) * job.map_w + w.columns.start;
    Floats of_row[BLOCKS];
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) of_row[n] = V::Set(w.start);
    for (size_t c = 0; c < w.columns.count; ++c) {
      const E* x = static_cast<const E*>(job.x) + (row + c * job.dilation_w) * job.channels + channel;
      BINARIZE_UNROLL
      for (int n = 0; n < BLOCKS; ++n) {
        of_row[n] = Op::template Join<V>(of_row[n], Read<V, FULL>(x + n * kLanes, lanes));
      }
    }
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) joined[n] = Op::template Join<V>(joined[n], of_row[n]);
  }
  const Floats factor = V::Set(w.factor);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    Write<V, FULL>(y + channel + n * kLanes, Op::kAverage ? V::Mul(joined[n], factor) : joined[n], lanes);
  }
}

template <class V, class Op, class E>
void PoolElements(const PoolJob& job) {
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    for (size_t column = 0; column < job.out_w; ++column) {
      const PoolWindow w = FindPoolWindow(job, row, column, Op::kAverage);
      E* y = static_cast<E*>(job.y) + (row * job.out_w + column) * job.channels;
      size_t channel = 0;
      for (; channel + 4 * kLanes <= job.channels; channel += 4 * kLanes) {
        PoolBlocks<V, Op, true, 4>(job, w, channel, kLanes, y);
      }
      for (; channel + kLanes <= job.channels; channel += kLanes) {
        PoolBlocks<V, Op, true, 1>(job, w, channel, kLanes, y);
      }
      if (channel < job.channels) PoolBlocks<V, Op, false, 1>(job, w, channel, job.channels - channel, y);
    }
  }
}

template <class V, class Op>
void Pool(const PoolJob& job) {
  job.element == Element::kFloat16 ? PoolElements<V, Op, Half>(job) : PoolElements<V, Op, float>(job);
}

template <class V>
void MaxPool(const PoolJob& job) {
  Pool<V, Larger>(job);
}

template <class V>
void AveragePool(const PoolJob& job) {
  Pool<V, Sum>(job);
}

}  // namespace generic
}  // namespace binarize
