// The int8 convolution of an image and the pool behind it: docs/ops.md, "Int8Conv2d".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/kernels.h"
#include "core/plan.h"

namespace binarize {

// Attributes and sizes of one Int8Conv2d node, unchecked. A pool of 1 x 1 is none.
struct Int8Spec {
  int64_t channels_in = 0, channels_out = 0;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  int64_t pool_h = 1, pool_w = 1, pool_stride_h = 1, pool_stride_w = 1;
  int64_t pool_top = 0, pool_left = 0, pool_bottom = 0, pool_right = 0;
  bool pools_values = false;  // behind the activation, not before the scale
  float factor = 1.0f;
  int64_t zero_point = 0;
};

// What does not depend on the image's size. Immutable after construction.
class Int8Plan {
 public:
  // `weight` is [channels_out, channels_in, kernel_h, kernel_w]. Throws InvalidModel.
  Int8Plan(const Int8Spec& spec, const ConvParameters& parameters, const int8_t* weight, const Kernels& kernels);
  Int8Plan(const Int8Plan&) = delete;
  Int8Plan& operator=(const Int8Plan&) = delete;

  const Int8Spec& spec() const { return spec_; }
  const Int8Const& constant() const { return constant_; }
  const Kernels& kernels() const { return kernels_; }

 private:
  void Interleave(const int8_t* weight);

  Int8Spec spec_;
  const Kernels& kernels_;
  Int8Const constant_{};
  Epilogue epilogue_;
  std::vector<Block> blocks_;
  AlignedVector<uint8_t> weights_;
  AlignedVector<int32_t> base_;
};

struct Int8Tensors {
  const float* x;        // [channels, height, width], one image
  const void* residual;  // of the plan's element type; null when neutral
  void* y;               // null when not wanted
  uint64_t* next_bits;   // null when not wanted
};

// One image. A task is a strip of output rows: it quantizes the rows of the image under it, keeps the sums of as many
// rows as the pool looks at, and has scratch memory of its own.
class Int8Run {
 public:
  // Throws InvalidModel when kernel or pool do not fit or sizes overflow.
  Int8Run(const Int8Plan& plan, int64_t height, int64_t width);

  int64_t out_h() const { return out_h_; }
  int64_t out_w() const { return out_w_; }
  size_t task_count() const { return static_cast<size_t>(task_count_); }
  size_t scratch_bytes() const { return static_cast<size_t>(task_count_ * (strip_bytes_ + sums_bytes_)); }

  // Independent of each other; `scratch` is that of the whole call, 64-byte aligned.
  void RunTask(const Int8Tensors& tensors, void* scratch, size_t task) const noexcept;

 private:
  void Quantize(const float* x, int64_t first_row, int64_t rows, uint8_t* strip) const noexcept;

  const Int8Plan& plan_;
  int64_t height_, width_;
  int64_t sums_h_, sums_w_, out_h_, out_w_;
  int64_t rows_per_task_, task_count_;
  int64_t row_taps_;  // of a row of a strip, padding included
  int64_t strip_bytes_, sums_bytes_;
};

}  // namespace binarize
