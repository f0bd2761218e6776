// Activate and the pools: docs/ops.md. Sixteen channels at a time, whole maps once through the registers.
#pragma once

#include "core/pool_window.h"
#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// Sixteen channels, or the first `lanes` of them, of PIXELS pixels: their parameters are loaded once.
template <class V, bool FULL, class X, class E, int PIXELS>
BINARIZE_INLINE void ActivateTile(const ActivateJob& job, size_t pixel, size_t channel, size_t lanes) {
  using Floats = typename V::Floats;
  const size_t at = pixel * job.channels + channel;
  const X* x = static_cast<const X*>(job.x) + pixel * job.x_step + channel;
  Floats values[1][PIXELS];  // of one block
  Floats(&t)[PIXELS] = values[0];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = Read<V, FULL>(x + m * job.x_step, lanes);
  if (job.gate != nullptr) {
    const Floats gate = Read<V, FULL>(job.gate + channel, lanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Mul(t[m], gate);
  }
  const Floats scale = V::Load(job.scale + channel), bias = V::Load(job.bias + channel);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(t[m], scale, bias);
  if (job.residual != nullptr) {
    const E* residual = static_cast<const E*>(job.residual) + at;
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(t[m], Read<V, FULL>(residual + m * job.channels, lanes));
  }
  const Floats slope = V::Load(job.slope + channel), shift = V::Load(job.shift + channel);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(V::Leak(t[m], slope), shift);
  if (job.y != nullptr) {
    E* y = static_cast<E*>(job.y) + at;
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) Write<V, FULL>(y + m * job.channels, t[m], lanes);
  }
  if (job.bits != nullptr) {
    const size_t plane_step = job.words * 4, step = job.planes * plane_step;
    uint16_t* bits = reinterpret_cast<uint16_t*>(job.bits) + pixel * step + channel / kLanes;
    const float* threshold = job.threshold + channel;
    for (size_t plane = 0; plane < job.planes; ++plane, bits += plane_step) {
      WriteBits<V, FULL>(bits, step, values, threshold, lanes);
      threshold += (job.channels + kLanes - 1) / kLanes * kLanes;
    }
  }
}

template <class V, class X, class E, int PIXELS>
BINARIZE_INLINE void ActivatePixels(const ActivateJob& job, size_t pixel) {
  size_t channel = 0;
  for (; channel + kLanes <= job.channels; channel += kLanes) {
    ActivateTile<V, true, X, E, PIXELS>(job, pixel, channel, kLanes);
  }
  if (channel < job.channels) ActivateTile<V, false, X, E, PIXELS>(job, pixel, channel, job.channels - channel);
  if (job.bits == nullptr) return;
  for (size_t plane = pixel * job.planes; plane < (pixel + PIXELS) * job.planes; ++plane) {
    uint16_t* bits = reinterpret_cast<uint16_t*>(job.bits) + plane * job.words * 4;  // of the last word, those unused
    for (size_t quarter = (job.channels + kLanes - 1) / kLanes; quarter < job.words * 4; ++quarter) bits[quarter] = 0;
  }
}

template <class V, class X, class E>
void ActivateElements(const ActivateJob& job) {
  constexpr size_t kPixels = 4;
  size_t pixel = 0;
  for (; pixel + kPixels <= job.pixels; pixel += kPixels) ActivatePixels<V, X, E, 4>(job, pixel);
  for (; pixel < job.pixels; ++pixel) ActivatePixels<V, X, E, 1>(job, pixel);
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

// BLOCKS blocks of one output pixel, the last one of `lanes` channels; rows first, then columns.
template <class V, class Op, bool FULL, int BLOCKS, class E>
BINARIZE_INLINE void PoolBlocks(const PoolJob& job, const PoolWindow& w, size_t channel, size_t lanes, E* y) {
  using Floats = typename V::Floats;
  Floats joined[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) joined[n] = V::Set(w.start);
  for (size_t r = 0; r < w.rows.count; ++r) {
    const size_t row = (w.rows.start + r * job.dilation_h) * job.map_w + w.columns.start;
    for (size_t c = 0; c < w.columns.count; ++c) {
      const E* x = static_cast<const E*>(job.x) + (row + c * job.dilation_w) * job.channels + channel;
      BINARIZE_UNROLL
      for (int n = 0; n < BLOCKS; ++n) {
        joined[n] = Op::template Join<V>(joined[n], Read<V, FULL>(x + n * kLanes, lanes));
      }
    }
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
