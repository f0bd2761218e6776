// Geometry of a call: tap intervals, border classes, the column-padded copy of the map, and the split in tasks.
#include "core/run.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/bits.h"
#include "core/checked.h"

namespace binarize {
namespace {

constexpr int64_t kRowsPerBatch = 8;        // rows handed to a kernel at once: weights stay in L1 across them
constexpr int64_t kTasks = 16;              // enough to balance a few threads; a task costs about 0.1 us
constexpr int64_t kFlatBytes = 16 * 1024;   // activations of one flat task: half of the smallest L1
constexpr int64_t kTaskBlocks = 4;          // blocks are split at multiples of this: the widest tile or panel

size_t Aligned(int64_t bytes) { return static_cast<size_t>(RoundUp(bytes, kCacheLine)); }

uint64_t LowNibbles(uint64_t bytes) { return bytes & 0x0f0f0f0f0f0f0f0fu; }

// The words of uint32 of `first` and `second`, in turns.
void StorePairs(uint64_t first, uint64_t second, uint64_t* pairs) {
  constexpr uint64_t kLow = 0xffffffffu;
  pairs[0] = (first & kLow) | second << 32;
  pairs[1] = first >> 32 | (second & ~kLow);
}

}  // namespace

const void* At(const void* stream, Element element, int64_t index) {
  const size_t size = element == Element::kFloat16 ? sizeof(Half) : sizeof(float);
  return static_cast<const char*>(stream) + static_cast<size_t>(index) * size;
}

// At most three quarters are unused: two stores of fixed sizes, as a call of memset takes longer.
void ClearUnusedBits(const ConvConst& constant, const ConvRow& row) noexcept {
  const size_t quarters = constant.words_out * 4, unused = quarters - constant.block_count;
  if (row.next_bits == nullptr || unused == 0) return;
  for (size_t column = row.begin; column < row.end; ++column) {
    uint16_t* end = row.next_bits + (column + 1) * quarters;
    if ((unused & 1) != 0) end[-static_cast<ptrdiff_t>(unused)] = 0;
    if ((unused & 2) != 0) std::memset(end - 2, 0, 2 * sizeof(uint16_t));
  }
}

// The taps t of [0, kernel) with 0 <= index * stride - pad + t * dilation < size.
ConvRun::Interval ConvRun::TapsInside(int64_t index, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel,
                                      int64_t size) {
  const int64_t start = index * stride - pad;
  const int64_t begin = std::min(start < 0 ? CeilDiv(-start, dilation) : 0, kernel);
  const int64_t end = start < size ? std::min((size - 1 - start) / dilation + 1, kernel) : 0;
  return {begin, std::max(begin, end)};
}

ConvRun::ConvRun(const ConvPlan& plan, const MapShape& map, bool gated, bool factored)
    : plan_(plan), n_(map.n), h_(map.h), w_(map.w), gated_(gated), factored_(factored) {
  const ConvSpec& s = plan.spec();
  out_h_ = OutputExtent(h_, s.kernel_h, s.stride_h, s.pad_top, s.pad_bottom, s.dilation_h);
  out_w_ = OutputExtent(w_, s.kernel_w, s.stride_w, s.pad_left, s.pad_right, s.dilation_w);
  Require(out_h_ > 0 && out_w_ > 0, [&] {
    return "the kernel does not fit: a " + std::to_string(h_) + " x " + std::to_string(w_) + " map gives a " +
           std::to_string(out_h_) + " x " + std::to_string(out_w_) + " output";
  });
  const int64_t pixels = CheckedProduct(n_, CheckedProduct(out_h_, out_w_, "output map"), "output map");
  CheckedProduct(pixels, RoundUp(s.channels_out, kWordBits), "output");
  Flatten();
  PlanRows();
  PlanColumns();
  PlanTasks();
  PlanScratch();
}

// Without padding a 1x1 stride-1 conv is a matrix product: all pixels form one long row, or those of an image where
// images differ in their factors.
void ConvRun::Flatten() {
  const ConvSpec& s = plan_.spec();
  const bool no_pads = s.pad_top == 0 && s.pad_left == 0 && s.pad_bottom == 0 && s.pad_right == 0;
  flat_ = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && no_pads;
  padded_ = s.pad_left > 0 || s.pad_right > 0;
  const bool stray = s.group == 1 && s.channels_in % kWordBits != 0;  // else masks or unused lanes drop them
  copied_ = padded_ || stray || s.bit_planes() > 1;
  const bool joined = flat_ && !gated_ && !factored_;
  images_ = joined ? std::min<int64_t>(n_, 1) : n_;
  map_h_ = flat_ ? 1 : h_;
  map_w_ = joined ? n_ * h_ * w_ : flat_ ? h_ * w_ : w_;
  rows_ = flat_ ? images_ : n_ * out_h_;
  row_width_ = flat_ ? map_w_ : out_w_;
  padded_w_ = map_w_ + s.pad_left + s.pad_right;

  map_words_ = plan_.constant().words_in * static_cast<size_t>(2 * s.bits_per_input());
  call_.row_step = static_cast<size_t>(s.dilation_h) * static_cast<size_t>(padded_w_) * map_words_;
  call_.tap_step = static_cast<size_t>(s.dilation_w) * map_words_;
  call_.pixel_step = static_cast<size_t>(s.stride_w) * map_words_;
  call_.plane_step = static_cast<size_t>(images_ * map_h_ * padded_w_) * map_words_;
  call_.nonzeros_step = static_cast<size_t>(rows_ * row_width_);
  call_.map_h = static_cast<size_t>(map_h_);
  call_.map_w = static_cast<size_t>(map_w_);
  call_.link_channels = static_cast<size_t>(s.channels_in);
  call_.link_stride = s.stride_w;
  call_.link_offset = LinkOffset(s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
}

// Tap intervals shrink monotonically from both ends, so equal intervals are neighbours.
void ConvRun::PlanRows() {
  const ConvSpec& s = plan_.spec();
  const int64_t count = flat_ ? 1 : out_h_;
  class_of_row_.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const Interval taps = TapsInside(i, s.stride_h, s.pad_top, s.dilation_h, s.kernel_h, map_h_);
    if (row_classes_.empty() || !(row_classes_.back() == taps)) row_classes_.push_back(taps);
    class_of_row_[static_cast<size_t>(i)] = static_cast<uint32_t>(row_classes_.size() - 1);
  }
}

// Rows of a flat map are split in pieces of near-equal size, whole multiples of a tile. Where that gives few tasks (few
// pixels, as in the last stages of a net) the output channels of a dense conv are split as well.
void ConvRun::PlanTasks() {
  const ConvSpec& s = plan_.spec();
  const int64_t blocks = static_cast<int64_t>(plan_.constant().block_count);
  rows_per_task_ = std::max<int64_t>(1, rows_ / kTasks);
  columns_per_task_ = row_width_;
  if (flat_) {
    const int64_t bytes_per_pixel = static_cast<int64_t>(plan_.constant().words_in) * s.bit_planes() * 8;
    const int64_t pixels = std::clamp<int64_t>(kFlatBytes / bytes_per_pixel, 24, 256);
    const int64_t pieces = std::max<int64_t>(1, CeilDiv(row_width_, pixels));
    columns_per_task_ = std::max<int64_t>(1, std::min(RoundUp(CeilDiv(row_width_, pieces), 12), row_width_));
  }
  column_pieces_ = CeilDiv(std::max<int64_t>(1, row_width_), columns_per_task_);
  const int64_t tasks = CeilDiv(rows_, rows_per_task_) * column_pieces_;
  const int64_t wanted = s.group == 1 && tasks > 0 ? CeilDiv(kTasks / 2, tasks) : 1;
  blocks_per_task_ = RoundUp(CeilDiv(blocks, wanted), kTaskBlocks);
  block_pieces_ = CeilDiv(blocks, blocks_per_task_);
  task_count_ = n_ == 0 ? 0 : static_cast<size_t>(tasks * block_pieces_);
}

void ConvRun::PlanColumns() {
  const ConvSpec& s = plan_.spec();
  if (!padded_ || s.ternary) {  // padding counts nothing in a ternary conv
    column_classes_.push_back({0, s.kernel_w});
    return;
  }
  class_of_column_.resize(static_cast<size_t>(out_w_));
  for (int64_t i = 0; i < out_w_; ++i) {
    const Interval taps = TapsInside(i, s.stride_w, s.pad_left, s.dilation_w, s.kernel_w, map_w_);
    if (column_classes_.empty() || !(column_classes_.back() == taps)) column_classes_.push_back(taps);
    class_of_column_[static_cast<size_t>(i)] = static_cast<uint32_t>(column_classes_.size() - 1);
  }
}

void ConvRun::PlanScratch() {
  const int64_t bytes_per_pixel = static_cast<int64_t>(plan_.constant().words_in) * plan_.spec().bit_planes() * 8;
  if (copied_) {
    const int64_t pixels = CheckedProduct(CheckedProduct(images_, map_h_, "padded map"), padded_w_, "padded map");
    map_bytes_ = Aligned(CheckedProduct(pixels, bytes_per_pixel, "padded map"));
    column_bytes_ = Aligned(static_cast<int64_t>(class_of_column_.size() * sizeof(uint32_t)));
  }
  const int64_t classes = CheckedProduct(static_cast<int64_t>(row_classes_.size()),
                                         static_cast<int64_t>(column_classes_.size()), "border table");
  const int64_t outputs = plan_.padded_channels_out() * 4;
  const int64_t bases = plan_.spec().ternary ? 0 : plan_.spec().bases;
  base_bytes_ = Aligned(CheckedProduct(classes, bases * outputs, "border table"));
  if (gated_) scale_bytes_ = Aligned(CheckedProduct(n_, plan_.spec().terms() * outputs, "gated scale"));
  if (plan_.shares_nonzeros()) {
    const int64_t windows = CheckedProduct(plan_.spec().planes, rows_ * row_width_, "counts of nonzeros");
    nonzeros_bytes_ = Aligned((windows + images_ * map_h_ * padded_w_) * 4);  // and those of single pixels
  }
  scratch_bytes_ = map_bytes_ + base_bytes_ + column_bytes_ + scale_bytes_ + nonzeros_bytes_;
}

// Plane by plane, so that the words of a kernel row are neighbours as in a map of one plane.
void ConvRun::CopyMap(const uint64_t* bits, uint64_t* copy, int32_t* nonzeros) const {
  const ConvSpec& s = plan_.spec();
  const size_t words = plan_.constant().words_in * static_cast<size_t>(s.bits_per_input());
  const size_t left = static_cast<size_t>(s.pad_left) * words;
  const size_t middle = static_cast<size_t>(map_w_) * words;
  const size_t right = static_cast<size_t>(s.pad_right) * words;
  const bool counted = plan_.shares_nonzeros();
  int32_t* counts = counted ? nonzeros + s.planes * rows_ * row_width_ : nullptr;
  for (int64_t plane = 0; plane < s.planes; ++plane) {
    const uint64_t* from = bits + static_cast<size_t>(plane) * words;
    for (int64_t row = 0; row < images_ * map_h_; ++row) {
      std::memset(copy, 0, left * sizeof(uint64_t));
      copy += left;
      s.ternary ? CopyTernaryRow(from, copy, counted ? counts + row * padded_w_ : nullptr) : CopyRow(from, copy);
      std::memset(copy + middle, 0, right * sizeof(uint64_t));
      copy += middle + right;
      from += middle * static_cast<size_t>(s.planes);
    }
    if (counted) SumWindows(counts, nonzeros + plane * rows_ * row_width_);
  }
}

void ConvRun::CopyRow(const uint64_t* bits, uint64_t* copy) const {
  const ConvSpec& s = plan_.spec();
  const size_t words = plan_.constant().words_in, planes = static_cast<size_t>(s.planes);
  const size_t width = static_cast<size_t>(map_w_);
  if (planes == 1) {
    std::memcpy(copy, bits, width * words * sizeof(uint64_t));
  } else {
    for (size_t column = 0; column < width; ++column) {
      std::copy_n(bits + column * planes * words, words, copy + column * words);
    }
  }
  const uint64_t last = LastWordMask(s.channels_in);
  if (last == ~uint64_t{0}) return;
  for (size_t i = words - 1; i < width * words; i += words) copy[i] &= last;
}

// Two planes of bits, whose mean is -1, 0 or 1, become pairs of words; see ConvCall. `counts`, if wanted, are the
// nonzeros of each pixel.
void ConvRun::CopyTernaryRow(const uint64_t* bits, uint64_t* copy, int32_t* counts) const {
  const ConvSpec& s = plan_.spec();
  const size_t words = plan_.constant().words_in, step = words * static_cast<size_t>(s.bit_planes());
  const uint64_t last = LastWordMask(s.channels_in);
  const bool by_nibbles = plan_.pairs_nibbles();
  if (counts != nullptr) std::fill_n(counts, padded_w_, 0);
  for (int64_t column = 0; column < map_w_; ++column, bits += step) {
    int32_t count = 0;
    for (size_t word = 0; word < words; ++word, copy += 2) {
      const uint64_t signs = bits[word];
      const uint64_t nonzeros = ~(signs ^ bits[words + word]) & (word + 1 == words ? last : ~uint64_t{0});
      by_nibbles ? StorePairs(LowNibbles(signs) | LowNibbles(nonzeros) << 4,
                              LowNibbles(signs >> 4) | LowNibbles(nonzeros >> 4) << 4, copy)
                 : StorePairs(signs, nonzeros, copy);
      count += Popcount64(nonzeros);
    }
    if (counts != nullptr) counts[s.pad_left + column] = count;
  }
}

// From the nonzeros of each pixel to those under the kernel of each output pixel: rows of taps first, then columns.
void ConvRun::SumWindows(const int32_t* counts, int32_t* nonzeros) const {
  const ConvSpec& s = plan_.spec();
  const int64_t rows_per_image = flat_ ? 1 : out_h_;
  std::vector<int32_t> sums(static_cast<size_t>(padded_w_));
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t image = row / rows_per_image, i = row % rows_per_image;
    const Interval taps = row_classes_[class_of_row_[static_cast<size_t>(i)]];
    std::fill(sums.begin(), sums.end(), 0);
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      const int64_t map_row = image * map_h_ + i * s.stride_h - s.pad_top + tap * s.dilation_h;
      const int32_t* pixels = counts + map_row * padded_w_;
      for (size_t column = 0; column < sums.size(); ++column) sums[column] += pixels[column];
    }
    for (int64_t column = 0; column < row_width_; ++column) {
      const int32_t* under = &sums[static_cast<size_t>(column * s.stride_w)];
      int32_t sum = 0;
      for (int64_t tap = 0; tap < s.kernel_w; ++tap) sum += under[tap * s.dilation_w];
      *nonzeros++ = sum;
    }
  }
}

void ConvRun::FillClasses(int32_t* base, uint32_t* column_class) const {
  for (const Interval& row : row_classes_) {
    for (const Interval& column : column_classes_) {
      plan_.FillBase(row.begin, row.end, column.begin, column.end, base);
      base += plan_.spec().bases * plan_.padded_channels_out();
    }
  }
  std::copy(class_of_column_.begin(), class_of_column_.end(), column_class);
}

// The scale of each image: scale * gate.
void ConvRun::FillScale(float* scale) const {
  const size_t padded = static_cast<size_t>(plan_.padded_channels_out()), channels = plan_.constant().channels_out;
  for (int64_t image = 0; image < n_; ++image) {
    const float* gate = tensors_.factors.gate + static_cast<size_t>(image) * channels;
    const float* row = plan_.constant().scale;
    for (size_t term = 0; term < plan_.constant().terms; ++term, row += padded, scale += padded) {
      // Doubled after rounding, as scale itself is; see ConvPlan::halved.
      for (size_t o = 0; o < padded; ++o) {
        const float unit = plan_.halved() ? 2.0f : 1.0f;
        scale[o] = o < channels ? unit * (row[o] / unit * gate[o]) : 0.0f;
      }
    }
  }
}

void ConvRun::Prepare(const ConvTensors& tensors, void* scratch) {
  tensors_ = tensors;
  char* memory = static_cast<char*>(scratch);
  uint64_t* copy = reinterpret_cast<uint64_t*>(memory);
  int32_t* base = reinterpret_cast<int32_t*>(memory + map_bytes_);
  uint32_t* column_class = reinterpret_cast<uint32_t*>(memory + map_bytes_ + base_bytes_);
  float* scale = reinterpret_cast<float*>(memory + map_bytes_ + base_bytes_ + column_bytes_);
  int32_t* nonzeros = reinterpret_cast<int32_t*>(memory + scratch_bytes_ - nonzeros_bytes_);
  if (copied_) CopyMap(tensors.bits, copy, nonzeros);
  if (!plan_.spec().ternary) FillClasses(base, column_class);
  if (gated_) FillScale(scale);
  scale_ = gated_ ? scale : plan_.constant().scale;
  map_ = reinterpret_cast<const uint32_t*>(copied_ ? copy : tensors.bits);
  base_ = base;
  column_class_ = class_of_column_.empty() ? nullptr : column_class;
  nonzeros_ = plan_.shares_nonzeros() ? nonzeros : nullptr;
}

ConvRow ConvRun::MakeRow(int64_t row, int64_t begin, int64_t end) const noexcept {
  const ConvSpec& s = plan_.spec();
  const ConvConst& constant = plan_.constant();
  const int64_t rows_per_image = flat_ ? 1 : out_h_;
  const int64_t image = row / rows_per_image, i = row % rows_per_image;
  const size_t row_class = class_of_row_[static_cast<size_t>(i)];
  const Interval taps = row_classes_[row_class];

  ConvRow r{};
  r.tap_begin = static_cast<size_t>(taps.begin);
  r.tap_end = static_cast<size_t>(taps.end);
  r.begin = static_cast<size_t>(begin);
  r.end = static_cast<size_t>(end);
  if (taps.begin < taps.end) {  // otherwise the first tap row may lie outside the map
    const int64_t first = i * s.stride_h - s.pad_top + taps.begin * s.dilation_h;
    r.bits = map_ + static_cast<size_t>((image * map_h_ + first) * padded_w_) * map_words_;
  } else {
    r.bits = map_;
  }
  const size_t padded = static_cast<size_t>(plan_.padded_channels_out());
  r.base = base_ + row_class * column_classes_.size() * constant.bases * padded;
  r.column_class = column_class_;
  if (nonzeros_ != nullptr) r.nonzeros = nonzeros_ + row * row_width_;
  r.scale = scale_ + (gated_ ? static_cast<size_t>(image) * constant.terms * padded : 0);
  if (factored_) {
    const int64_t of_image = tensors_.factors.pixels_of_one_image ? 0 : image * out_h_ * out_w_;
    r.factor = tensors_.factors.pixels + static_cast<size_t>(of_image + i * row_width_);
  }
  if (tensors_.link != nullptr) {
    r.link = At(tensors_.link, constant.element, image * map_h_ * map_w_ * s.channels_in);
    const int64_t top = i * s.stride_h + LinkOffset(s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
    r.link_row_begin = static_cast<size_t>(std::clamp<int64_t>(top, 0, map_h_));
    r.link_row_end = static_cast<size_t>(std::clamp<int64_t>(top + s.stride_h, 0, map_h_));
  }
  const size_t pixel = static_cast<size_t>(row * row_width_);
  const int64_t first = row * row_width_ * s.channels_out;
  if (tensors_.residual != nullptr) r.residual = At(tensors_.residual, constant.element, first);
  if (tensors_.y != nullptr) r.y = const_cast<void*>(At(tensors_.y, constant.element, first));
  if (tensors_.next_bits != nullptr) {
    r.next_bits = reinterpret_cast<uint16_t*>(tensors_.next_bits + pixel * constant.words_out);
  }
  return r;
}

void ConvRun::RunTask(size_t task) const noexcept {
  const ConvConst& constant = plan_.constant();
  const auto kernel = plan_.depthwise() ? plan_.kernels().depthwise : plan_.kernels().conv;
  ConvRow batch[kRowsPerBatch];
  const int64_t index = static_cast<int64_t>(task);
  const int64_t block_piece = index % block_pieces_, rest = index / block_pieces_;
  const int64_t first = rest / column_pieces_ * rows_per_task_, last = std::min(first + rows_per_task_, rows_);
  const int64_t begin = rest % column_pieces_ * columns_per_task_;
  const int64_t end = std::min(begin + columns_per_task_, row_width_);
  const size_t first_block = static_cast<size_t>(block_piece * blocks_per_task_);
  const size_t last_block = std::min(first_block + static_cast<size_t>(blocks_per_task_), constant.block_count);
  for (int64_t row = first; row < last;) {
    size_t count = 0;
    for (; row < last && count < static_cast<size_t>(kRowsPerBatch); ++row) batch[count++] = MakeRow(row, begin, end);
    kernel(constant, call_, {batch, count, first_block, last_block});
    if (last_block < constant.block_count) continue;
    for (size_t i = 0; i < count; ++i) ClearUnusedBits(constant, batch[i]);
  }
}

}  // namespace binarize
