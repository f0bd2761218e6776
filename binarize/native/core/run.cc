// Rows for the kernels: the column-padded copy of the map, gated scales, and the pieces of a task.
#include "core/run.h"

#include <algorithm>
#include <cstring>

#include "core/bits.h"

namespace binarize {
namespace {

constexpr int64_t kRowsPerBatch = 8;  // rows handed to a kernel at once: weights stay in L1 across them

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
  for (size_t plane = row.begin * constant.next_planes; plane < row.end * constant.next_planes; ++plane) {
    uint16_t* end = row.next_bits + (plane + 1) * quarters;
    if ((unused & 1) != 0) end[-static_cast<ptrdiff_t>(unused)] = 0;
    if ((unused & 2) != 0) std::memset(end - 2, 0, 2 * sizeof(uint16_t));
  }
}

// Plane by plane, so that the words of a kernel row are neighbours as in a map of one plane.
void ConvRun::CopyMap(const uint64_t* bits, uint64_t* copy, int32_t* nonzeros) const {
  const ConvSpec& s = plan_.spec();
  const size_t words = plan_.constant().words_in * static_cast<size_t>(s.bits_per_input());
  const size_t left = static_cast<size_t>(s.pad_left) * words;
  const size_t middle = static_cast<size_t>(g_.map_w) * words;
  const size_t right = static_cast<size_t>(s.pad_right) * words;
  const bool counted = plan_.shares_nonzeros();
  int32_t* counts = counted ? nonzeros + s.planes * g_.rows * g_.row_width : nullptr;
  const size_t row_words = static_cast<size_t>(g_.map_w * g_.map.planes) * plan_.constant().words_in;
  for (int64_t plane = 0; plane < s.planes; ++plane) {
    const uint64_t* from = bits + FirstWord() + static_cast<size_t>(plane) * words;
    for (int64_t row = 0; row < g_.images * g_.map_h; ++row) {
      std::memset(copy, 0, left * sizeof(uint64_t));
      copy += left;
      s.ternary ? CopyTernaryRow(from, copy, counted ? counts + row * g_.padded_w : nullptr) : CopyRow(from, copy);
      std::memset(copy + middle, 0, right * sizeof(uint64_t));
      copy += middle + right;
      from += row_words;
    }
    if (counted) SumWindows(counts, nonzeros + plane * g_.rows * g_.row_width);
  }
}

// Of the map's pixels, the first that is read.
size_t ConvRun::FirstWord() const { return static_cast<size_t>(plan_.spec().first_plane) * plan_.constant().words_in; }

void ConvRun::CopyRow(const uint64_t* bits, uint64_t* copy) const {
  const ConvSpec& s = plan_.spec();
  const size_t words = plan_.constant().words_in, planes = static_cast<size_t>(g_.map.planes);
  const size_t width = static_cast<size_t>(g_.map_w);
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
  const size_t words = plan_.constant().words_in, step = words * static_cast<size_t>(g_.map.planes);
  const uint64_t last = LastWordMask(s.channels_in);
  const bool by_nibbles = plan_.pairs_nibbles();
  if (counts != nullptr) std::fill_n(counts, g_.padded_w, 0);
  for (int64_t column = 0; column < g_.map_w; ++column, bits += step) {
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
  const int64_t rows_per_image = g_.flat ? 1 : g_.out_h;
  std::vector<int32_t> sums(static_cast<size_t>(g_.padded_w));
  for (int64_t row = 0; row < g_.rows; ++row) {
    const int64_t image = row / rows_per_image, i = row % rows_per_image;
    const ConvGeometry::Interval taps = g_.row_classes[g_.class_of_row[static_cast<size_t>(i)]];
    std::fill(sums.begin(), sums.end(), 0);
    for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
      const int64_t map_row = image * g_.map_h + i * s.stride_h - s.pad_top + tap * s.dilation_h;
      const int32_t* pixels = counts + map_row * g_.padded_w;
      for (size_t column = 0; column < sums.size(); ++column) sums[column] += pixels[column];
    }
    for (int64_t column = 0; column < g_.row_width; ++column) {
      const int32_t* under = &sums[static_cast<size_t>(column * s.stride_w)];
      int32_t sum = 0;
      for (int64_t tap = 0; tap < s.kernel_w; ++tap) sum += under[tap * s.dilation_w];
      *nonzeros++ = sum;
    }
  }
}

// The scale of each image: scale * gate.
void ConvRun::FillScale(float* scale) const {
  const size_t padded = static_cast<size_t>(plan_.padded_channels_out()), channels = plan_.constant().channels_out;
  for (int64_t image = 0; image < g_.map.n; ++image) {
    const float* gate = tensors_.factors.gate + static_cast<size_t>(image) * channels;
    const float* row = plan_.constant().scale;
    for (size_t term = 0; term < plan_.constant().terms; ++term, row += padded, scale += padded) {
      for (size_t o = 0; o < padded; ++o) scale[o] = o < channels ? row[o] * gate[o] : 0.0f;
    }
  }
}

ConvRun::ConvRun(const ConvGeometry& geometry, const ConvTensors& tensors, void* scratch)
    : g_(geometry), plan_(geometry.plan), tensors_(tensors) {
  char* memory = static_cast<char*>(scratch);
  uint64_t* copy = reinterpret_cast<uint64_t*>(memory);
  float* scale = reinterpret_cast<float*>(memory + g_.map_bytes);
  int32_t* nonzeros = reinterpret_cast<int32_t*>(memory + g_.map_bytes + g_.scale_bytes);
  if (g_.copied) CopyMap(tensors.bits, copy, nonzeros);
  if (plan_.factors().gate) FillScale(scale);
  scale_ = plan_.factors().gate ? scale : plan_.constant().scale;
  map_ = reinterpret_cast<const uint32_t*>(g_.copied ? copy : tensors.bits + FirstWord());
  const bool adds = tensors.link != nullptr || tensors.residual != nullptr || plan_.factors().any();
  only_bits_ = tensors.y == nullptr && !adds && plan_.constant().bit_limits != nullptr;
  nonzeros_ = plan_.shares_nonzeros() ? nonzeros : nullptr;
}

ConvRow ConvRun::MakeRow(int64_t row, int64_t begin, int64_t end) const noexcept {
  const ConvSpec& s = plan_.spec();
  const ConvConst& constant = plan_.constant();
  const int64_t rows_per_image = g_.flat ? 1 : g_.out_h;
  const int64_t image = row / rows_per_image, i = row % rows_per_image;
  const size_t row_class = g_.class_of_row[static_cast<size_t>(i)];
  const ConvGeometry::Interval taps = g_.row_classes[row_class];

  ConvRow r{};
  r.tap_begin = static_cast<size_t>(taps.begin);
  r.tap_end = static_cast<size_t>(taps.end);
  r.begin = static_cast<size_t>(begin);
  r.end = static_cast<size_t>(end);
  r.only_bits = only_bits_;
  if (taps.begin < taps.end) {  // otherwise the first tap row may lie outside the map
    const int64_t first = i * s.stride_h - s.pad_top + taps.begin * s.dilation_h;
    r.bits = map_ + static_cast<size_t>((image * g_.map_h + first) * g_.padded_w) * g_.map_words;
  } else {
    r.bits = map_;
  }
  const size_t padded = static_cast<size_t>(plan_.padded_channels_out());
  if (!g_.base.empty()) r.base = &g_.base[row_class * g_.column_classes.size() * constant.bases * padded];
  if (!g_.class_of_column.empty()) r.column_class = g_.class_of_column.data();
  if (nonzeros_ != nullptr) r.nonzeros = nonzeros_ + row * g_.row_width;
  r.scale = scale_ + (plan_.factors().gate ? static_cast<size_t>(image) * constant.terms * padded : 0);
  if (plan_.factors().pixels) {
    const int64_t of_image = tensors_.factors.pixels_of_one_image ? 0 : image * g_.out_h * g_.out_w;
    r.factor = tensors_.factors.pixels + static_cast<size_t>(of_image + i * g_.row_width);
  }
  if (tensors_.link != nullptr) {
    r.link = At(tensors_.link, constant.element, image * g_.map_h * g_.map_w * s.channels_in);
    const int64_t top = i * s.stride_h + LinkOffset(s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
    r.link_row_begin = static_cast<size_t>(std::clamp<int64_t>(top, 0, g_.map_h));
    r.link_row_end = static_cast<size_t>(std::clamp<int64_t>(top + s.stride_h, 0, g_.map_h));
  }
  const size_t pixel = static_cast<size_t>(row * g_.row_width);
  const int64_t first = row * g_.row_width * s.channels_out;
  if (tensors_.residual != nullptr) r.residual = At(tensors_.residual, constant.element, first);
  if (tensors_.y != nullptr) r.y = const_cast<void*>(At(tensors_.y, constant.element, first));
  if (tensors_.next_bits != nullptr) {
    r.next_bits = reinterpret_cast<uint16_t*>(tensors_.next_bits) + pixel * constant.next_step;
  }
  return r;
}

void ConvRun::RunTask(size_t task) const noexcept {
  const ConvConst& constant = plan_.constant();
  const auto kernel = plan_.depthwise() ? plan_.kernels().depthwise : plan_.kernels().conv;
  ConvRow batch[kRowsPerBatch];
  const int64_t index = static_cast<int64_t>(task);
  const int64_t block_piece = index % g_.block_split.pieces, rest = index / g_.block_split.pieces;
  const int64_t row_piece = rest / g_.column_split.pieces, column_piece = rest % g_.column_split.pieces;
  const int64_t first = g_.row_split.Begin(row_piece), last = g_.row_split.End(row_piece);
  const int64_t begin = g_.column_split.Begin(column_piece), end = g_.column_split.End(column_piece);
  const size_t first_block = static_cast<size_t>(g_.block_split.Begin(block_piece));
  const size_t last_block = static_cast<size_t>(g_.block_split.End(block_piece));
  for (int64_t row = first; row < last;) {
    size_t count = 0;
    for (; row < last && count < static_cast<size_t>(kRowsPerBatch); ++row) batch[count++] = MakeRow(row, begin, end);
    kernel(constant, g_.call, {batch, count, first_block, last_block});
    if (last_block < constant.block_count) continue;
    for (size_t i = 0; i < count; ++i) ClearUnusedBits(constant, batch[i]);
  }
}

}  // namespace binarize
