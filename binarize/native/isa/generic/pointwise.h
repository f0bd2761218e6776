// Activate and the pools: docs/ops.md. Sixteen channels at a time, whole maps once through the registers.
#pragma once

#include "core/pool_window.h"
#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// Sixteen channels of one pixel, or the first `lanes` of them; the result is their bits.
template <class V, bool FULL, class X, class E>
BINARIZE_INLINE uint64_t ActivateBlock(const ActivateJob& job, size_t pixel, size_t channel, size_t lanes) {
  using Floats = typename V::Floats;
  const size_t at = pixel * job.channels + channel;
  Floats t = Read<V, FULL>(static_cast<const X*>(job.x) + at, lanes);
  if (job.gate != nullptr) t = V::Mul(t, Read<V, FULL>(job.gate + channel, lanes));
  t = V::Fma(t, V::Load(job.scale + channel), V::Load(job.bias + channel));
  if (job.residual != nullptr) t = V::Add(t, Read<V, FULL>(static_cast<const E*>(job.residual) + at, lanes));
  t = V::Add(V::Leak(t, V::Load(job.slope + channel)), V::Load(job.shift + channel));
  if (job.y != nullptr) Write<V, FULL>(static_cast<E*>(job.y) + at, t, lanes);
  const unsigned valid = FULL ? 0xffffu : (1u << lanes) - 1u;
  return V::Above(t, V::Load(job.threshold + channel)) & valid;
}

template <class V, class X, class E>
void ActivateElements(const ActivateJob& job) {
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    for (size_t word = 0; word < job.words; ++word) {
      uint64_t packed = 0;
      for (size_t quarter = 0; quarter < 4; ++quarter) {
        const size_t channel = word * 64 + quarter * kLanes;
        if (channel >= job.channels) break;
        const size_t left = job.channels - channel;
        const uint64_t bits = left >= kLanes ? ActivateBlock<V, true, X, E>(job, pixel, channel, kLanes)
                                             : ActivateBlock<V, false, X, E>(job, pixel, channel, left);
        packed |= bits << (quarter * kLanes);
      }
      if (job.bits != nullptr) job.bits[pixel * job.words + word] = packed;
    }
  }
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
