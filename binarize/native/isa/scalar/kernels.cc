// Scalar kernels: the readable truth. Any CPU, one output pixel and one block of 16 output channels at a time.
//
// Compiled without contraction of a * b + c, so that every rounding is the one written here; the vector
// kernels must give the same bits.
#include "core/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bits.h"
#include "core/half.h"
#include "core/pool_window.h"

namespace binarize {
namespace {

template <class E>
void PackElements(const PackJob& job) {
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    const E* x = static_cast<const E*>(job.x) + pixel * job.channels;
    for (size_t plane = 0; plane < job.planes; ++plane) {
      uint64_t* bits = job.bits + (pixel * job.planes + plane) * job.words;
      const float* threshold = job.threshold + plane * job.channels;
      for (size_t word = 0; word < job.words; ++word) bits[word] = 0;
      for (size_t c = 0; c < job.channels; ++c) {
        const uint64_t bit = Widen(x[c]) > threshold[c * job.threshold_step];
        bits[c / kWordBits] |= bit << (c % kWordBits);
      }
    }
  }
}

void Pack(const PackJob& job) {
  job.element == Element::kFloat16 ? PackElements<Half>(job) : PackElements<float>(job);
}

// Mean over the stride's window, sum over the channels of the link of output channel o; window rows, then
// columns, then channels.
template <class E>
float LinkValue(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t o) {
  const int64_t left = static_cast<int64_t>(column) * call.link_stride + call.link_offset;
  const int64_t width = static_cast<int64_t>(call.map_w);
  const int64_t begin = left < 0 ? 0 : left;
  const int64_t end = left + call.link_stride < width ? left + call.link_stride : width;
  if (begin >= end || row.link_row_begin >= row.link_row_end) return 0.0f;
  float sum = -0.0f;  // the neutral element of addition
  for (size_t r = row.link_row_begin; r < row.link_row_end; ++r) {
    for (size_t c = static_cast<size_t>(begin); c < static_cast<size_t>(end); ++c) {
      const E* pixel = static_cast<const E*>(row.link) + (r * call.map_w + c) * call.link_channels;
      for (int32_t i = 0; i < k.link_count[o]; ++i) {
        sum += Widen(pixel[static_cast<size_t>(k.link_first[o]) + static_cast<size_t>(i) * k.link_step]);
      }
    }
  }
  const size_t count = (row.link_row_end - row.link_row_begin) * static_cast<size_t>(end - begin);
  return sum * (1.0f / static_cast<float>(count));
}

// docs/ops.md, "Value": adds term `term` to the sums of one block of one pixel.
void AddTerm(const ConvConst& k, const ConvRow& row, size_t column, size_t block, size_t term,
             const int32_t* accumulator, float* sums) {
  const float* scale = row.scale + (term * k.block_count + block) * kLanes;
  for (size_t lane = 0; lane < k.blocks[block].lanes; ++lane) {
    float a = static_cast<float>(accumulator[lane]);
    if (row.factor != nullptr) a = a * row.factor[column];
    sums[lane] = std::fma(a, scale[lane], sums[lane]);
  }
}

// docs/ops.md, "Value": from the sums of one block of one pixel to y and the next bits.
template <class E>
void Epilogue(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
              const float* sums) {
  const E* residual = static_cast<const E*>(row.residual);
  E* y = static_cast<E*>(row.y);
  float values[kLanes];
  const size_t lanes = k.blocks[block].lanes;
  for (size_t lane = 0; lane < lanes; ++lane) {
    const size_t o = block * kLanes + lane;
    const size_t at = column * k.channels_out + o;
    float t = sums[lane];
    if (row.link != nullptr) t = std::fma(k.gamma[o], LinkValue<E>(k, call, row, column, o), t);
    if (residual != nullptr) t = t + Widen(residual[at]);
    if (k.slope != nullptr) t = t > 0.0f ? t : k.slope[o] * t;
    if (k.shift != nullptr) t = t + k.shift[o];
    if (y != nullptr) Narrow(t, &y[at]);
    values[lane] = t;
  }
  for (size_t plane = 0; row.next_bits != nullptr && plane < k.next_planes; ++plane) {
    const float* threshold = k.next_threshold + (plane * k.block_count + block) * kLanes;
    uint32_t next = 0;
    for (size_t lane = 0; lane < lanes; ++lane) next |= uint32_t{values[lane] > threshold[lane]} << lane;
    row.next_bits[column * k.next_step + plane * k.words_out * 4 + block] = static_cast<uint16_t>(next);
  }
}

void Finish(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
            const float* sums) {
  k.element == Element::kFloat16 ? Epilogue<Half>(k, call, row, column, block, sums)
                                    : Epilogue<float>(k, call, row, column, block, sums);
}

void FinishOneTerm(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
                   const int32_t* accumulator) {
  float sums[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] = k.bias[block * kLanes + lane];
  AddTerm(k, row, column, block, 0, accumulator, sums);
  Finish(k, call, row, column, block, sums);
}

const int32_t* Base(const ConvConst& k, const ConvRow& row, size_t column, size_t base, size_t block) {
  const size_t border = row.column_class != nullptr ? row.column_class[column] : 0;
  return row.base + ((border * k.bases + base) * k.block_count + block) * kLanes;
}

// Lanes side by side, as many as one register of most CPUs holds.
#if defined(__GNUC__) || defined(__clang__)
typedef uint64_t Bits __attribute__((vector_size(16)));
#else
typedef uint64_t Bits;
#endif
constexpr size_t kParts = kLanes * sizeof(uint32_t) / sizeof(Bits);  // of a block

Bits LoadPart(const uint32_t* lanes, size_t part) {
  Bits bits;
  std::memcpy(&bits, lanes + part * (kLanes / kParts), sizeof bits);
  return bits;
}
Bits InAllLanes(uint32_t word) { return Bits{} + (word | static_cast<uint64_t>(word) << 32); }

// Counts ones by lane, without the instruction that not every CPU has: those of a word become sums of 2, 4 and 8 bits,
// and bytes take the sums of many words before they are added up.
class LaneCounter {
 public:
  // Counts the words `words(part)` of the lanes.
  template <class F>
  void Count(const F& words) {
    if (words_ == kMostWords) Flush();
    ++words_;
    for (size_t part = 0; part < kParts; ++part) {
      Bits ones = words(part);
      ones = ones - ((ones >> 1) & 0x5555555555555555u);
      ones = (ones & 0x3333333333333333u) + ((ones >> 2) & 0x3333333333333333u);
      bytes_[part] += (ones + (ones >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    }
  }

  // The counts of all lanes so far.
  void Read(int32_t* counts) {
    Flush();
    std::memcpy(counts, sums_, sizeof sums_);
  }

 private:
  static constexpr int kMostWords = 31;  // a word adds at most 8 to a byte

  void Flush() {
    for (size_t part = 0; part < kParts; ++part) {
      Bits ones = bytes_[part];
      ones = (ones & 0x00ff00ff00ff00ffu) + ((ones >> 8) & 0x00ff00ff00ff00ffu);
      sums_[part] += (ones & 0x0000ffff0000ffffu) + ((ones >> 16) & 0x0000ffff0000ffffu);
      bytes_[part] = Bits{};
    }
    words_ = 0;
  }

  Bits bytes_[kParts] = {}, sums_[kParts] = {};  // of 8 and of 32 bits
  int words_ = 0;
};

// The accumulators, or half of them, of one block of one pixel, for a plane of the input and a base of the weight.
void Accumulate(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
                size_t base, size_t plane, int32_t* accumulator) {
  const Block& b = k.blocks[base * k.block_count + block];
  const size_t words = k.ternary ? 2 : 1;  // of 32 channels of the map; see ConvCall
  LaneCounter mismatches, nonzeros;
  for (size_t r = row.tap_begin; r < row.tap_end; ++r) {
    for (size_t c = 0; c < k.kernel_w; ++c) {
      const uint32_t* bits = row.bits + (r - row.tap_begin) * call.row_step + c * call.tap_step +
                             column * call.pixel_step + plane * call.plane_step + b.first * words;
      const uint32_t* weights = k.weights + b.weights + (r * k.kernel_w + c) * b.span * kLanes;
      for (size_t word = 0; word < b.span; ++word, bits += words, weights += kLanes) {
        const Bits sign = InAllLanes(bits[0]), nonzero = InAllLanes(k.ternary ? bits[1] : ~uint32_t{0});
        const auto differ = [=](size_t part) { return (sign ^ LoadPart(weights, part)) & nonzero; };
        if (b.masks == kNoMask) {
          mismatches.Count(differ);
        } else {
          const uint32_t* masks = k.masks + b.masks + word * kLanes;
          mismatches.Count([=](size_t part) { return differ(part) & LoadPart(masks, part); });
          if (k.ternary) nonzeros.Count([=](size_t part) { return nonzero & LoadPart(masks, part); });
        }
      }
    }
  }
  int32_t counts[kLanes], start[kLanes];
  mismatches.Read(counts);
  if (row.nonzeros != nullptr) {
    std::fill_n(start, kLanes, row.nonzeros[plane * call.nonzeros_step + column]);
  } else if (k.ternary) {
    nonzeros.Read(start);
  } else {
    std::copy_n(Base(k, row, column, base, block), kLanes, start);
  }
  const int32_t unit = k.counts_once ? 1 : 2;
  for (size_t lane = 0; lane < kLanes; ++lane) accumulator[lane] = start[lane] - unit * counts[lane];
}

template <class Count>
void ConvPixel(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
               const Count& count) {
  float sums[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] = k.bias[block * kLanes + lane];
  for (size_t term = 0; term < k.terms; ++term) {
    int32_t accumulator[kLanes];
    count(k, call, row, column, block, term / k.planes, term % k.planes, accumulator);
    AddTerm(k, row, column, block, term, accumulator, sums);
  }
  Finish(k, call, row, column, block, sums);
}

void Conv(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  for (size_t block = work.first_block; block < work.last_block; ++block) {
    for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
      for (size_t column = row->begin; column < row->end; ++column) {
        ConvPixel(k, call, *row, column, block, Accumulate);
      }
    }
  }
}

// The accumulators of one block of one pixel of a depthwise conv, for a plane of the input and a base of the weight.
void AccumulateDepthwise(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t block,
                         size_t base, size_t plane, int32_t* accumulators) {
  const size_t lanes = k.blocks[block].lanes;
  const size_t word = block / 4, quarter = block % 4;  // four blocks share a word of 64 channels
  int32_t mismatches[kLanes] = {};
  for (size_t r = row.tap_begin; r < row.tap_end; ++r) {
    for (size_t c = 0; c < k.kernel_w; ++c) {
      const uint32_t* bits = row.bits + (r - row.tap_begin) * call.row_step + c * call.tap_step +
                             column * call.pixel_step + plane * call.plane_step;
      const uint64_t a = bits[2 * word] | static_cast<uint64_t>(bits[2 * word + 1]) << 32;
      const size_t tap = (base * k.kernel_h + r) * k.kernel_w + c;
      const uint64_t differ = a ^ k.depthwise[tap * k.depthwise_step + word];
      for (size_t lane = 0; lane < lanes; ++lane) mismatches[lane] += (differ >> (quarter * kLanes + lane)) & 1;
    }
  }
  const int32_t* start = Base(k, row, column, base, block);
  for (size_t lane = 0; lane < kLanes; ++lane) accumulators[lane] = start[lane] - 2 * mismatches[lane];
}

void Depthwise(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
    for (size_t column = row->begin; column < row->end; ++column) {
      for (size_t block = 0; block < k.block_count; ++block) {
        ConvPixel(k, call, *row, column, block, AccumulateDepthwise);
      }
    }
  }
}

// What y is at one pixel and channel before it is rounded.
template <class X, class E>
float ActivateValue(const ActivateJob& job, size_t pixel, size_t c) {
  float t = Widen(static_cast<const X*>(job.x)[pixel * job.x_step + c]);
  if (job.gate != nullptr) t = t * job.gate[c];
  t = std::fma(t, job.scale[c], job.bias[c]);
  if (job.residual != nullptr) t = t + Widen(static_cast<const E*>(job.residual)[pixel * job.channels + c]);
  return (t > 0.0f ? t : job.slope[c] * t) + job.shift[c];
}

template <class X, class E>
void ActivateLink(const ActivateJob& job, size_t pixel) {
  for (size_t o = 0; o < job.link_channels; ++o) {
    float sum = ActivateValue<X, E>(job, pixel, o);
    for (size_t c = o + job.link_channels; c < job.channels; c += job.link_channels) {
      sum = sum + ActivateValue<X, E>(job, pixel, c);
    }
    Narrow(job.gamma[o] * sum, static_cast<E*>(job.link) + pixel * job.link_channels + o);
  }
}

template <class X, class E>
void ActivateElements(const ActivateJob& job) {
  const size_t padded = (job.channels + kLanes - 1) / kLanes * kLanes;
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    const size_t words = job.bits != nullptr ? job.planes * job.words : 0;
    uint64_t* bits = job.bits + pixel * words;
    std::fill_n(bits, words, uint64_t{0});
    for (size_t c = 0; c < job.channels; ++c) {
      const float t = ActivateValue<X, E>(job, pixel, c);
      if (job.y != nullptr) Narrow(t, static_cast<E*>(job.y) + pixel * job.channels + c);
      const float* threshold = job.threshold + c;
      for (size_t word = c / kWordBits; word < words; word += job.words, threshold += padded) {
        bits[word] |= uint64_t{t > *threshold} << (c % kWordBits);
      }
    }
    if (job.link != nullptr) ActivateLink<X, E>(job, pixel);
  }
}

void Activate(const ActivateJob& job) {
  if (job.stream == Element::kFloat32) return ActivateElements<float, float>(job);
  if (job.x_element == Element::kFloat32) return ActivateElements<float, Half>(job);
  return ActivateElements<Half, Half>(job);
}

template <bool AVERAGE>
float Join(float joined, float x) {
  return AVERAGE ? joined + x : (x > joined ? x : joined);
}

template <class E, bool AVERAGE>
void PoolElements(const PoolJob& job) {
  const E* map = static_cast<const E*>(job.x);
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    for (size_t column = 0; column < job.out_w; ++column) {
      const PoolWindow w = FindPoolWindow(job, row, column, AVERAGE);
      E* y = static_cast<E*>(job.y) + (row * job.out_w + column) * job.channels;
      for (size_t channel = 0; channel < job.channels; ++channel) {
        float joined = w.start;
        for (size_t r = 0; r < w.rows.count; ++r) {
          float of_row = w.start;
          for (size_t c = 0; c < w.columns.count; ++c) {
            const size_t pixel = (w.rows.start + r * job.dilation_h) * job.map_w + w.columns.start + c * job.dilation_w;
            of_row = Join<AVERAGE>(of_row, Widen(map[pixel * job.channels + channel]));
          }
          joined = Join<AVERAGE>(joined, of_row);
        }
        Narrow(AVERAGE ? joined * w.factor : joined, y + channel);
      }
    }
  }
}

template <bool AVERAGE>
void Pool(const PoolJob& job) {
  job.element == Element::kFloat16 ? PoolElements<Half, AVERAGE>(job) : PoolElements<float, AVERAGE>(job);
}

template <class E>
void RowSumsOf(const RowSumsJob& job) {
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    const E* pixels = static_cast<const E*>(job.x) + row * job.width * job.channels;
    for (size_t channel = 0; channel < job.channels; ++channel) {
      float sum = 0.0f;
      for (size_t column = 0; column < job.width; ++column) sum += Widen(pixels[column * job.channels + channel]);
      job.sums[row * job.channels + channel] = sum;
    }
  }
}

void RowSums(const RowSumsJob& job) {
  job.element == Element::kFloat16 ? RowSumsOf<Half>(job) : RowSumsOf<float>(job);
}

void Project(const ProjectJob& job) {
  std::fill_n(job.y, job.outputs, 0.0f);
  for (size_t i = 0; i < job.inputs; ++i) {
    for (size_t o = 0; o < job.outputs; ++o) job.y[o] = std::fma(job.x[i], job.weight[i * job.outputs + o], job.y[o]);
  }
}

void Quantize(const QuantizeJob& job) {
  const float low = static_cast<float>(-job.zero_point), high = static_cast<float>(255 - job.zero_point);
  uint8_t* q = static_cast<uint8_t*>(job.q);
  for (size_t i = 0; i < job.pixels; ++i) {
    for (size_t c = 0; c < job.channels; ++c) {
      float x = job.x[c * job.channel_step + i] * job.factor;
      x = x > low ? x : low;  // NaN becomes low
      x = x < high ? x : high;
      *q++ = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(x)) + job.zero_point);
    }
  }
}

void Int8Sums(const Int8Const& k, const Int8SumsJob& job) {
  const size_t lanes = k.epilogue.block_count * kLanes;
  const int8_t* weights = static_cast<const int8_t*>(k.weights);
  const uint8_t* map = static_cast<const uint8_t*>(job.map);
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    for (size_t o = 0; o < lanes; ++o) {
      int32_t sum = 0;
      for (size_t row = 0; row < k.kernel_h; ++row) {
        const uint8_t* taps = map + row * job.row_step;
        for (size_t tap = 0; tap < k.steps * 4; ++tap) {
          const size_t step = (o / kLanes * k.kernel_h + row) * k.steps + tap / 4;
          sum += taps[pixel * job.pixel_step + tap] * weights[(step * kLanes + o % kLanes) * 4 + tap % 4];
        }
      }
      job.sums[pixel * lanes + o] = sum;
    }
  }
}

// The value of a sum of channel `o` up to its activation; see Int8Const::pools_values.
float Activated(const ConvConst& k, const ConvRow& row, size_t column, size_t o, int32_t accumulator) {
  float t = std::fma(static_cast<float>(accumulator), row.scale[o], k.bias[o]);
  if (row.residual != nullptr) {
    const size_t at = column * k.channels_out + o;
    t = t + (k.element == Element::kFloat16 ? Widen(static_cast<const Half*>(row.residual)[at])
                                            : static_cast<const float*>(row.residual)[at]);
  }
  return k.slope == nullptr || t > 0.0f ? t : k.slope[o] * t;
}

void Int8Finish(const Int8Const& k, const Int8FinishJob& job) {
  const size_t lanes = k.epilogue.block_count * kLanes;
  for (size_t column = job.out.begin; column < job.out.end; ++column) {
    const size_t first = column * job.pool_stride;
    const size_t begin = first < job.pool_pad ? 0 : first - job.pool_pad;
    const size_t end = std::min(first + job.pool_w - job.pool_pad, job.row_width);
    for (size_t block = 0; block < k.epilogue.block_count; ++block) {
      int32_t accumulators[kLanes];
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const size_t o = block * kLanes + lane;
        int32_t most = job.rows[0][begin * lanes + o], least = most;
        for (size_t r = 0; r < job.row_count; ++r) {
          for (size_t c = begin; c < end; ++c) {
            most = std::max(most, job.rows[r][c * lanes + o]);
            least = std::min(least, job.rows[r][c * lanes + o]);
          }
        }
        most += k.base[o], least += k.base[o];
        const bool low = k.pools_values && lane < k.epilogue.blocks[block].lanes &&
                         Activated(k.epilogue, job.out, column, o, least) > Activated(k.epilogue, job.out, column, o, most);
        accumulators[lane] = low ? least : most;
      }
      FinishOneTerm(k.epilogue, {}, job.out, column, block, accumulators);
    }
  }
}

}  // namespace

const Kernels kScalarKernels = {0, 4, 4, Pack, Conv, Depthwise, Activate,
                                Pool<false>, Pool<true>, RowSums, Project, Quantize, Int8Sums, Int8Finish};

}  // namespace binarize
