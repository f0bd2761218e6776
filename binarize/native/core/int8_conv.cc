// Validation and weight layout of the int8 convolution, and the geometry of its strips.
#include "core/int8_conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bits.h"
#include "core/checked.h"
#include "core/run.h"

namespace binarize {
namespace {

constexpr int64_t kMaxTerms = int64_t{1} << 16;  // of 255 * 128 each: sums stay inside int32
constexpr int64_t kStepBytes = 4;                // of a lane
constexpr int64_t kTasks = 8;  // more balance more threads, but strips quantize and convolve their common rows twice
constexpr int64_t kMostPoolRows = 64;

void Validate(const Int8Spec& s) {
  RequireRange("number of input channels", s.channels_in, 1, kMaxExtent);
  RequireRange("number of output channels", s.channels_out, 1, kMaxExtent);
  RequireRange("kernel height", s.kernel_h, 1, kMaxExtent);
  RequireRange("kernel width", s.kernel_w, 1, kMaxExtent);
  for (int64_t stride : {s.stride_h, s.stride_w}) RequireRange("attribute strides", stride, 1, kMaxExtent);
  for (int64_t pad : {s.pad_top, s.pad_left, s.pad_bottom, s.pad_right}) {
    RequireRange("attribute pads", pad, 0, kMaxExtent);
  }
  RequireRange("attribute pool_shape[0]", s.pool_h, 1, kMostPoolRows);
  RequireRange("attribute pool_shape[1]", s.pool_w, 1, kMaxExtent);
  for (int64_t stride : {s.pool_stride_h, s.pool_stride_w}) {
    RequireRange("attribute pool_strides", stride, 1, kMaxExtent);
  }
  // A pad smaller than the window: then no window lies outside the map.
  for (int64_t pad : {s.pool_top, s.pool_bottom}) RequireRange("attribute pool_pads", pad, 0, s.pool_h - 1);
  for (int64_t pad : {s.pool_left, s.pool_right}) RequireRange("attribute pool_pads", pad, 0, s.pool_w - 1);
  RequireRange("input zero_point", s.zero_point, 0, 255);
  Require(s.factor > 0.0f && std::isfinite(s.factor), "input factor must be positive and finite");
  const int64_t taps = CheckedProduct(s.kernel_h, s.kernel_w, "kernel area");
  RequireRange("number of terms of a dot product", CheckedProduct(taps, s.channels_in, "kernel"), 1, kMaxTerms);
}

int64_t TapsPerStep(const Kernels& kernels) { return static_cast<int64_t>(kernels.taps_per_step); }

}  // namespace

Int8Plan::Int8Plan(const Int8Spec& spec, const ConvParameters& parameters, const int8_t* weight,
                   const Kernels& kernels)
    : spec_((Validate(spec), spec)),
      kernels_(kernels),
      epilogue_(parameters, spec.channels_out, &constant_.epilogue) {
  for (int64_t o = 0; o < spec.channels_out; o += kLanes) {
    Block b{};
    b.lanes = static_cast<size_t>(std::min(kLanes, spec.channels_out - o));
    blocks_.push_back(b);
  }
  constant_.kernel_h = static_cast<size_t>(spec.kernel_h);
  const int64_t row_taps = CheckedProduct(spec.kernel_w, spec.channels_in, "kernel");
  constant_.steps = static_cast<size_t>(CeilDiv(row_taps, TapsPerStep(kernels)));
  // Where values rise with their sums both kinds of pool are one.
  const auto rising = [](const std::vector<float>& values, bool zero_too) {
    return std::all_of(values.begin(), values.end(), [=](float v) { return v > 0.0f || (zero_too && v == 0.0f); });
  };
  const bool rises = rising(parameters.scale, false) && rising(parameters.slope, true);
  constant_.pools_values = spec.pools_values && spec.pool_h * spec.pool_w > 1 && !rises;
  Interleave(weight);
  constant_.weights = weights_.data();
  constant_.base = base_.data();
  constant_.epilogue.blocks = blocks_.data();
  constant_.epilogue.block_count = blocks_.size();
}

// The padding of the map holds the zero point too, so that its share of the sum is the same for every pixel.
void Int8Plan::Interleave(const int8_t* weight) {
  const int64_t rows = spec_.kernel_h, steps = static_cast<int64_t>(constant_.steps);
  const int64_t lanes = static_cast<int64_t>(blocks_.size()) * kLanes;
  const int64_t taps = TapsPerStep(kernels_), tap_bytes = kStepBytes / taps;
  const int64_t bytes = CheckedProduct(CheckedProduct(rows, steps * kStepBytes, "weight"), lanes, "weight");
  weights_.assign(static_cast<size_t>(bytes), 0);
  base_.assign(static_cast<size_t>(lanes), 0);
  for (int64_t o = 0; o < spec_.channels_out; ++o) {
    int32_t sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < spec_.kernel_w * spec_.channels_in; ++i) {
        const int64_t column = i / spec_.channels_in, channel = i % spec_.channels_in;
        const int8_t w = weight[((o * spec_.channels_in + channel) * rows + row) * spec_.kernel_w + column];
        const int64_t step = (o / kLanes * rows + row) * steps + i / taps;
        const int64_t tap = (step * kLanes + o % kLanes) * taps + i % taps;
        const int16_t wide = w;
        const void* value = tap_bytes == 1 ? static_cast<const void*>(&w) : &wide;
        std::memcpy(&weights_[static_cast<size_t>(tap * tap_bytes)], value, static_cast<size_t>(tap_bytes));
        sum += w;
      }
    }
    base_[static_cast<size_t>(o)] = -sum * static_cast<int32_t>(spec_.zero_point);
  }
}

Int8Run::Int8Run(const Int8Plan& plan, int64_t height, int64_t width) : plan_(plan), height_(height), width_(width) {
  const Int8Spec& s = plan.spec();
  RequireRange("height of the image", height, 1, kMaxExtent);
  RequireRange("width of the image", width, 1, kMaxExtent);
  sums_h_ = OutputExtent(height, s.kernel_h, s.stride_h, s.pad_top, s.pad_bottom, 1);
  sums_w_ = OutputExtent(width, s.kernel_w, s.stride_w, s.pad_left, s.pad_right, 1);
  Require(sums_h_ > 0 && sums_w_ > 0, [&] {
    return "the kernel does not fit an image of " + std::to_string(height) + " x " + std::to_string(width);
  });
  out_h_ = OutputExtent(sums_h_, s.pool_h, s.pool_stride_h, s.pool_top, s.pool_bottom, 1);
  out_w_ = OutputExtent(sums_w_, s.pool_w, s.pool_stride_w, s.pool_left, s.pool_right, 1);
  Require(out_h_ > 0 && out_w_ > 0, [&] {
    return "the pool does not fit a map of " + std::to_string(sums_h_) + " x " + std::to_string(sums_w_);
  });
  const int64_t bits = RoundUp(s.channels_out, kWordBits) * static_cast<int64_t>(plan.constant().epilogue.next_planes);
  CheckedProduct(CheckedProduct(out_h_, out_w_, "output map"), bits, "output");

  rows_per_task_ = CeilDiv(out_h_, kTasks);
  task_count_ = CeilDiv(out_h_, rows_per_task_);
  const int64_t taps = TapsPerStep(plan.kernels());
  const int64_t row_taps = CheckedProduct(s.pad_left + width + s.pad_right, s.channels_in, "padded image");
  const int64_t last_tap = CheckedProduct((sums_w_ - 1) * s.stride_w, s.channels_in, "padded image") +
                           static_cast<int64_t>(plan.constant().steps) * taps;
  row_taps_ = std::max(row_taps, last_tap);
  const int64_t sums_rows = std::min((rows_per_task_ - 1) * s.pool_stride_h + s.pool_h, sums_h_);
  const int64_t strip_rows = (sums_rows - 1) * s.stride_h + s.kernel_h;
  const int64_t strip_taps = CheckedProduct(strip_rows, row_taps_, "padded image");
  strip_bytes_ = RoundUp(CheckedProduct(strip_taps, kStepBytes / taps, "padded image"), int64_t{kCacheLine});
  const int64_t lanes = static_cast<int64_t>(plan.constant().epilogue.block_count) * kLanes;
  const int64_t row_bytes = CheckedProduct(sums_w_, lanes * static_cast<int64_t>(sizeof(int32_t)), "row of sums");
  sums_bytes_ = RoundUp(CheckedProduct(row_bytes, s.pool_h, "rows of sums"), int64_t{kCacheLine});
  CheckedProduct(task_count_, strip_bytes_ + sums_bytes_, "scratch memory");
}

// Rows [first_row, first_row + rows) of the image, channels last, with the padding around them.
void Int8Run::Quantize(const float* x, int64_t first_row, int64_t rows, uint8_t* strip) const noexcept {
  const Int8Spec& s = plan_.spec();
  const int64_t tap_bytes = kStepBytes / TapsPerStep(plan_.kernels());
  if (tap_bytes == 1) {
    std::memset(strip, static_cast<int>(s.zero_point), static_cast<size_t>(strip_bytes_));
  } else {
    std::fill_n(reinterpret_cast<int16_t*>(strip), strip_bytes_ / tap_bytes, static_cast<int16_t>(s.zero_point));
  }
  QuantizeJob job{};
  job.channel_step = static_cast<size_t>(height_ * width_);
  job.pixels = static_cast<size_t>(width_), job.channels = static_cast<size_t>(s.channels_in);
  job.factor = s.factor, job.zero_point = static_cast<int32_t>(s.zero_point);
  for (int64_t i = std::max<int64_t>(0, -first_row); i < std::min(rows, height_ - first_row); ++i) {
    job.x = x + (first_row + i) * width_;
    job.q = strip + (i * row_taps_ + s.pad_left * s.channels_in) * tap_bytes;
    plan_.kernels().quantize(job);
  }
}

void Int8Run::RunTask(const Int8Tensors& tensors, void* scratch, size_t task) const noexcept {
  const Int8Spec& s = plan_.spec();
  const Int8Const& constant = plan_.constant();
  const Kernels& kernels = plan_.kernels();
  uint8_t* strip = static_cast<uint8_t*>(scratch) + static_cast<int64_t>(task) * (strip_bytes_ + sums_bytes_);
  int32_t* sums = reinterpret_cast<int32_t*>(strip + strip_bytes_);
  const int64_t row_lanes = sums_w_ * static_cast<int64_t>(constant.epilogue.block_count) * kLanes;

  const int64_t begin = static_cast<int64_t>(task) * rows_per_task_, end = std::min(begin + rows_per_task_, out_h_);
  const auto first_of = [&](int64_t row) { return std::max<int64_t>(0, row * s.pool_stride_h - s.pool_top); };
  const auto last_of = [&](int64_t row) { return std::min(sums_h_, row * s.pool_stride_h - s.pool_top + s.pool_h); };
  const int64_t first_sums = first_of(begin);
  const int64_t first_row = first_sums * s.stride_h - s.pad_top;
  Quantize(tensors.x, first_row, (last_of(end - 1) - 1 - first_sums) * s.stride_h + s.kernel_h, strip);

  // Row r of the sums lies in slot r % pool_h: a window is that many rows, and later windows need no earlier ones.
  const int32_t* window[kMostPoolRows];
  int64_t done = first_sums;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t last = last_of(row);
    for (done = std::max(done, first_of(row)); done < last; ++done) {
      Int8SumsJob job{};
      job.map = strip + (done - first_sums) * s.stride_h * row_taps_ * kStepBytes / TapsPerStep(kernels);
      job.row_step = static_cast<size_t>(row_taps_);
      job.pixel_step = static_cast<size_t>(s.stride_w * s.channels_in);
      job.pixels = static_cast<size_t>(sums_w_);
      job.sums = sums + done % s.pool_h * row_lanes;
      kernels.int8_sums(constant, job);
    }
    Int8FinishJob job{};
    job.rows = window;
    for (int64_t r = first_of(row); r < last; ++r) window[job.row_count++] = sums + r % s.pool_h * row_lanes;
    job.row_width = static_cast<size_t>(sums_w_);
    job.pool_w = static_cast<size_t>(s.pool_w);
    job.pool_stride = static_cast<size_t>(s.pool_stride_w);
    job.pool_pad = static_cast<size_t>(s.pool_left);
    job.out.end = static_cast<size_t>(out_w_);
    job.out.scale = constant.epilogue.scale;
    const int64_t pixel = row * out_w_, at = pixel * s.channels_out;
    if (tensors.residual != nullptr) job.out.residual = At(tensors.residual, constant.epilogue.element, at);
    if (tensors.y != nullptr) job.out.y = const_cast<void*>(At(tensors.y, constant.epilogue.element, at));
    if (tensors.next_bits != nullptr) {
      const size_t at_pixel = static_cast<size_t>(pixel) * constant.epilogue.next_step;
      job.out.next_bits = reinterpret_cast<uint16_t*>(tensors.next_bits) + at_pixel;
    }
    kernels.int8_finish(constant, job);
    ClearUnusedBits(constant.epilogue, job.out);
  }
}

}  // namespace binarize
