// See geometry.h.
#include "core/geometry.h"

#include <algorithm>
#include <string>

#include "core/bits.h"
#include "core/checked.h"

namespace binarize {
namespace {

constexpr int64_t kTasks = 16;              // enough to balance a few threads; a task costs about 0.1 us
constexpr int64_t kFlatBytes = 16 * 1024;   // activations of one flat task: half of the smallest L1
constexpr int64_t kTilePixels = 12;         // of the widest kernels
constexpr int64_t kLeastPixels = 24;        // of a flat task

size_t Aligned(int64_t bytes) { return static_cast<size_t>(RoundUp(bytes, kCacheLine)); }

}  // namespace

ConvGeometry::ConvGeometry(const ConvPlan& plan_of, const MapShape& map_shape) : plan(plan_of), map(map_shape) {
  const ConvSpec& s = plan.spec();
  RequireRange("height of the map", map.h, 1, kMaxExtent);
  RequireRange("width of the map", map.w, 1, kMaxExtent);
  out_h = OutputExtent(map.h, s.kernel_h, s.stride_h, s.pad_top, s.pad_bottom, s.dilation_h);
  out_w = OutputExtent(map.w, s.kernel_w, s.stride_w, s.pad_left, s.pad_right, s.dilation_w);
  Require(out_h > 0 && out_w > 0, [&] {
    return "the kernel does not fit: a " + std::to_string(map.h) + " x " + std::to_string(map.w) + " map gives a " +
           std::to_string(out_h) + " x " + std::to_string(out_w) + " output";
  });
  const int64_t pixels = CheckedProduct(map.n, CheckedProduct(out_h, out_w, "output map"), "output map");
  const int64_t bits = RoundUp(s.channels_out, kWordBits) * static_cast<int64_t>(plan.constant().next_planes);
  CheckedProduct(pixels, bits, "output");
  Flatten();
  PlanBorders();
  PlanBase();
  PlanTasks();
  PlanScratch();
}

// Without padding a 1x1 stride-1 conv is a matrix product: all pixels form one long row, or those of an image where
// images differ in their factors.
void ConvGeometry::Flatten() {
  const ConvSpec& s = plan.spec();
  const bool no_pads = s.pad_top == 0 && s.pad_left == 0 && s.pad_bottom == 0 && s.pad_right == 0;
  flat = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && no_pads;
  padded = s.pad_left > 0 || s.pad_right > 0;
  const bool stray = s.group == 1 && s.channels_in % kWordBits != 0;  // else masks or unused lanes drop them
  copied = padded || stray || s.bit_planes() > 1;
  const bool joined = flat && !plan.factors().any();
  images = joined ? std::min<int64_t>(map.n, 1) : map.n;
  map_h = flat ? 1 : map.h;
  map_w = joined ? map.n * map.h * map.w : flat ? map.h * map.w : map.w;
  rows = flat ? images : map.n * out_h;
  row_width = flat ? map_w : out_w;
  padded_w = map_w + s.pad_left + s.pad_right;

  const int64_t planes = copied ? s.bits_per_input() : map.planes;  // a copy is laid out by planes
  map_words = plan.constant().words_in * static_cast<size_t>(2 * planes);
  call.row_step = static_cast<size_t>(s.dilation_h) * static_cast<size_t>(padded_w) * map_words;
  call.tap_step = static_cast<size_t>(s.dilation_w) * map_words;
  call.pixel_step = static_cast<size_t>(s.stride_w) * map_words;
  call.plane_step = static_cast<size_t>(images * map_h * padded_w) * map_words;
  call.nonzeros_step = static_cast<size_t>(rows * row_width);
  call.map_h = static_cast<size_t>(map_h);
  call.map_w = static_cast<size_t>(map_w);
  call.link_channels = static_cast<size_t>(s.channels_in);
  call.link_stride = s.stride_w;
  call.link_offset = LinkOffset(s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
}

// The taps t of [0, kernel) with 0 <= index * stride - pad + t * dilation < size.
ConvGeometry::Interval ConvGeometry::TapsInside(const Axis& a, int64_t index) {
  const int64_t start = index * a.stride - a.pad;
  const int64_t begin = std::min(start < 0 ? CeilDiv(-start, a.dilation) : 0, a.kernel);
  const int64_t end = start < a.size ? std::min((a.size - 1 - start) / a.dilation + 1, a.kernel) : 0;
  return {begin, std::max(begin, end)};
}

// Tap intervals shrink monotonically from both ends, so equal intervals are neighbours.
std::vector<uint32_t> ConvGeometry::Classify(const Axis& axis, int64_t count, std::vector<Interval>* classes) {
  std::vector<uint32_t> class_of(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const Interval taps = TapsInside(axis, i);
    if (classes->empty() || !(classes->back() == taps)) classes->push_back(taps);
    class_of[static_cast<size_t>(i)] = static_cast<uint32_t>(classes->size() - 1);
  }
  return class_of;
}

void ConvGeometry::PlanBorders() {
  const ConvSpec& s = plan.spec();
  const Axis row_axis{s.stride_h, s.pad_top, s.dilation_h, s.kernel_h, map_h};
  const Axis column_axis{s.stride_w, s.pad_left, s.dilation_w, s.kernel_w, map_w};
  class_of_row = Classify(row_axis, flat ? 1 : out_h, &row_classes);
  if (padded && !s.ternary) {  // padding counts nothing in a ternary conv
    class_of_column = Classify(column_axis, out_w, &column_classes);
  } else {
    column_classes.push_back({0, s.kernel_w});
  }
}

// Accumulators count from it; see ConvRow::base.
void ConvGeometry::PlanBase() {
  if (plan.spec().ternary) return;
  const int64_t outputs = plan.spec().bases * plan.padded_channels_out();
  const int64_t classes = CheckedProduct(static_cast<int64_t>(row_classes.size()),
                                         static_cast<int64_t>(column_classes.size()), "border table");
  base.resize(static_cast<size_t>(CheckedProduct(classes, outputs, "border table")));
  int32_t* next = base.data();
  for (const Interval& row : row_classes) {
    for (const Interval& column : column_classes) {
      plan.FillBase(row.begin, row.end, column.begin, column.end, next);
      next += outputs;
    }
  }
}

// Threads get runs of tasks, as many each, so tasks are alike and their number divides by the usual numbers of threads. A
// flat map is split by pixels as the other convs' maps are by rows: what a thread wrote it reads in the next conv. Where
// that gives few tasks (few pixels, as in the last stages of a net) the output channels of a dense conv are split as well.
void ConvGeometry::PlanTasks() {
  const ConvSpec& s = plan.spec();
  const int64_t blocks = static_cast<int64_t>(plan.constant().block_count);
  row_split = {rows, 1, std::clamp<int64_t>(rows, 1, kTasks)};
  column_split = {row_width, kTilePixels, 1};
  if (flat) {
    const int64_t bytes_per_pixel = static_cast<int64_t>(plan.constant().words_in) * s.bit_planes() * 8;
    const int64_t pixels = std::clamp<int64_t>(kFlatBytes / bytes_per_pixel, kLeastPixels, 256);
    const int64_t most = row_width / kLeastPixels;
    const int64_t pieces = std::min(RoundUp(CeilDiv(row_width, pixels), kTasks / 2), most / 4 * 4);
    column_split.pieces = std::max<int64_t>(1, pieces);
  }
  const int64_t tasks = row_split.pieces * column_split.pieces, tile = static_cast<int64_t>(plan.kernels().tile_blocks);
  const int64_t wanted = s.group == 1 ? CeilDiv(kTasks / 2, tasks) : 1;
  block_split = {blocks, tile, std::min(wanted, CeilDiv(blocks, tile))};
  task_count = map.n == 0 ? 0 : static_cast<size_t>(tasks * block_split.pieces);
}

void ConvGeometry::PlanScratch() {
  const ConvSpec& s = plan.spec();
  const int64_t bytes_per_pixel = static_cast<int64_t>(plan.constant().words_in) * s.bit_planes() * 8;
  if (copied) {
    const int64_t pixels = CheckedProduct(CheckedProduct(images, map_h, "padded map"), padded_w, "padded map");
    map_bytes = Aligned(CheckedProduct(pixels, bytes_per_pixel, "padded map"));
  }
  if (plan.factors().gate) {
    scale_bytes = Aligned(CheckedProduct(map.n, s.terms() * plan.padded_channels_out() * 4, "gated scale"));
  }
  if (plan.shares_nonzeros()) {
    const int64_t windows = CheckedProduct(s.planes, rows * row_width, "counts of nonzeros");
    nonzeros_bytes = Aligned((windows + images * map_h * padded_w) * 4);  // and those of single pixels
  }
  scratch_bytes = map_bytes + scale_bytes + nonzeros_bytes;
}

}  // namespace binarize
