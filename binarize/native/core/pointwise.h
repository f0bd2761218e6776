// The interface of the float operators between convs: Activate and the pools. Plain data, as in core/kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace binarize {

// Pixels of one image. Parameters have a value per channel and are readable up to a multiple of 16 channels.
struct ActivateJob {
  const float* x;         // [pixels, channels]
  const float* gate;      // [channels], null when neutral
  const float* scale;
  const float* bias;
  const float* residual;  // [pixels, channels], null when neutral; y may be its memory or that of x
  const float* slope;
  const float* shift;
  const float* threshold;
  float* y;               // null when not wanted
  uint64_t* bits;         // [pixels, words], null when not wanted
  size_t pixels, channels, words;
};

// The rows [first_row, last_row) of the output of one image.
struct PoolJob {
  const float* x;  // [map_h, map_w, channels]
  float* y;        // [.., out_w, channels], row 0
  size_t map_h, map_w, channels, out_w;
  size_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  size_t first_row, last_row;
  size_t whole_window;  // average: what every sum is divided by; 0: the pixels of the window inside the map
};

struct PointwiseKernels {
  void (*activate)(const ActivateJob& job);
  void (*max_pool)(const PoolJob& job);
  void (*average_pool)(const PoolJob& job);
};

extern const PointwiseKernels kScalarPointwise;
extern const PointwiseKernels kAvx2Pointwise;
extern const PointwiseKernels kAvx512BwPointwise;
extern const PointwiseKernels kAvx512Pointwise;
extern const PointwiseKernels kNeonPointwise;

}  // namespace binarize
