// Activate and the pools as plain loops over channels, which the compiler vectorises for each instruction set that
// includes them. Explicit fused multiply-adds and a fixed order of sums: all of them give the same bits.
//
// Loops have run-time bounds, because short constant ones are unrolled into scalar code before they are vectorised.
// `Isa::Above(t, threshold)` is the mask of t[i] > threshold[i] for 16 floats.
// No std functions and everything in an unnamed namespace: each file has its own target flags (see core/kernels.h).
#pragma once

#include "core/pointwise.h"

#if defined(__GNUC__) || defined(__clang__)
#define BINARIZE_POINTWISE_INLINE inline __attribute__((always_inline))
#define BINARIZE_FMA(a, b, c) __builtin_fmaf(a, b, c)
#if defined(__clang__)
#define BINARIZE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define BINARIZE_INDEPENDENT _Pragma("GCC ivdep")
#endif
#else
#include <cmath>
#define BINARIZE_POINTWISE_INLINE inline
#define BINARIZE_FMA(a, b, c) fmaf(a, b, c)
#define BINARIZE_INDEPENDENT
#endif

namespace binarize {
namespace {

constexpr size_t kBlockLanes = 16;
constexpr size_t kPoolLanes = 256;      // channels joined at once, on the stack
constexpr size_t kActivateLanes = 256;  // a multiple of 64

// docs/ops.md, "Activate", for `count` channels of one pixel from `channel` on. `out` may be x or residual.
template <bool GATE, bool RESIDUAL>
BINARIZE_POINTWISE_INLINE void ActivateRun(const ActivateJob& job, size_t pixel, size_t channel, size_t count,
                                           float* out) {
  const size_t at = pixel * job.channels + channel;
  const float* x = job.x + at;
  const float* gate = GATE ? job.gate + channel : nullptr;
  const float* scale = job.scale + channel;
  const float* bias = job.bias + channel;
  const float* residual = RESIDUAL ? job.residual + at : nullptr;
  const float* slope = job.slope + channel;
  const float* shift = job.shift + channel;
  BINARIZE_INDEPENDENT
  for (size_t i = 0; i < count; ++i) {
    float t = BINARIZE_FMA(GATE ? x[i] * gate[i] : x[i], scale[i], bias[i]);
    if (RESIDUAL) t = t + residual[i];
    const float scaled = slope[i] * t;
    out[i] = (t > 0.0f ? t : scaled) + shift[i];
  }
}

template <typename Isa>
BINARIZE_POINTWISE_INLINE uint64_t PackWord(const float* t, const float* threshold, size_t lanes) {
  uint64_t packed = 0;
  for (size_t first = 0; first < lanes; first += kBlockLanes) {
    float last[kBlockLanes];
    const float* block = t + first;
    if (lanes - first < kBlockLanes) {  // the values end here, the thresholds do not
      for (size_t i = 0; i < kBlockLanes; ++i) last[i] = i < lanes - first ? block[i] : 0.0f;
      block = last;
    }
    packed |= static_cast<uint64_t>(Isa::Above(block, threshold + first)) << first;
  }
  return lanes < 64 ? packed & ((uint64_t{1} << lanes) - 1) : packed;
}

template <typename Isa, bool GATE, bool RESIDUAL>
BINARIZE_POINTWISE_INLINE void ActivatePixels(const ActivateJob& job) {
  float row[kActivateLanes];
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    for (size_t channel = 0; channel < job.channels; channel += kActivateLanes) {
      const size_t left = job.channels - channel, count = left < kActivateLanes ? left : kActivateLanes;
      float* out = job.y != nullptr ? job.y + pixel * job.channels + channel : row;
      ActivateRun<GATE, RESIDUAL>(job, pixel, channel, count, out);
      if (job.bits == nullptr) continue;
      uint64_t* bits = job.bits + pixel * job.words + channel / 64;
      for (size_t c = 0; c < count; c += 64) {
        bits[c / 64] = PackWord<Isa>(out + c, job.threshold + channel + c, count - c < 64 ? count - c : 64);
      }
    }
  }
}

template <typename Isa>
void Activate(const ActivateJob& job) {
  if (job.gate != nullptr) {
    return job.residual != nullptr ? ActivatePixels<Isa, true, true>(job) : ActivatePixels<Isa, true, false>(job);
  }
  return job.residual != nullptr ? ActivatePixels<Isa, false, true>(job) : ActivatePixels<Isa, false, false>(job);
}

// The taps of a window inside the map along one axis: [first, last), the first one at `start`.
struct PoolTaps {
  size_t start, count;
};

BINARIZE_POINTWISE_INLINE PoolTaps TapsInside(size_t index, size_t stride, size_t pad, size_t dilation, size_t kernel,
                                              size_t size) {
  const size_t begin = index * stride;  // in the padded map
  const size_t skipped = begin < pad ? (pad - begin + dilation - 1) / dilation : 0;
  const size_t start = begin + skipped * dilation - pad;
  if (skipped >= kernel || start >= size) return {0, 0};
  const size_t fitting = (size - 1 - start) / dilation + 1;
  return {start, fitting < kernel - skipped ? fitting : kernel - skipped};
}

struct TakeLarger {
  static BINARIZE_POINTWISE_INLINE float Join(float sum, float value) { return value > sum ? value : sum; }
};
struct Add {
  static BINARIZE_POINTWISE_INLINE float Join(float sum, float value) { return sum + value; }
};

// `lanes` <= kPoolLanes channels of one output pixel. Joins the taps in order of rows and columns.
template <typename Op>
BINARIZE_POINTWISE_INLINE void PoolBlock(const PoolJob& job, PoolTaps rows, PoolTaps columns, size_t channel,
                                         size_t lanes, float start, float factor, float* y) {
  float joined[kPoolLanes];
  for (size_t i = 0; i < lanes; ++i) joined[i] = start;
  for (size_t r = 0; r < rows.count; ++r) {
    const size_t row = (rows.start + r * job.dilation_h) * job.map_w;
    for (size_t c = 0; c < columns.count; ++c) {
      const float* x = job.x + (row + columns.start + c * job.dilation_w) * job.channels + channel;
      for (size_t i = 0; i < lanes; ++i) joined[i] = Op::Join(joined[i], x[i]);
    }
  }
  for (size_t i = 0; i < lanes; ++i) y[i] = joined[i] * factor;
}

template <typename Op, bool AVERAGE>
BINARIZE_POINTWISE_INLINE void Pool(const PoolJob& job) {
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    const PoolTaps rows = TapsInside(row, job.stride_h, job.pad_top, job.dilation_h, job.kernel_h, job.map_h);
    for (size_t column = 0; column < job.out_w; ++column) {
      const PoolTaps columns =
          TapsInside(column, job.stride_w, job.pad_left, job.dilation_w, job.kernel_w, job.map_w);
      const size_t inside = rows.count * columns.count;
      const size_t divisor = job.whole_window != 0 ? job.whole_window : (inside != 0 ? inside : 1);
      const float factor = AVERAGE ? 1.0f / static_cast<float>(divisor) : 1.0f;
      const float start = AVERAGE || inside == 0 ? 0.0f : -__builtin_inff();
      float* y = job.y + (row * job.out_w + column) * job.channels;
      for (size_t channel = 0; channel < job.channels; channel += kPoolLanes) {
        const size_t left = job.channels - channel;
        PoolBlock<Op>(job, rows, columns, channel, left < kPoolLanes ? left : kPoolLanes, start, factor, y + channel);
      }
    }
  }
}

void MaxPool(const PoolJob& job) { Pool<TakeLarger, false>(job); }
void AveragePool(const PoolJob& job) { Pool<Add, true>(job); }

}  // namespace
}  // namespace binarize
