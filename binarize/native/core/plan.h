// A convolution as the model file gives it, and the plan made of it once at kernel creation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/kernels.h"

namespace binarize {

// Attributes and sizes of one BinaryConv2d node, unchecked.
struct ConvSpec {
  int64_t channels_in = 0;
  int64_t channels_out = 0;
  int64_t group = 1;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t planes = 1;    // of the input
  int64_t first_plane = 0;  // of the map's planes of bits, the first that is read
  int64_t bases = 1;     // of the weight
  bool ternary = false;  // a plane of the input is the mean of two planes of bits

  int64_t terms() const { return planes * bases; }
  int64_t bits_per_input() const { return ternary ? 2 : 1; }
  int64_t bit_planes() const { return planes * bits_per_input(); }
};

// Which of ConvFactors calls have.
struct HasFactors {
  bool gate = false, pixels = false;
  bool any() const { return gate || pixels; }
};

// What a node brings beside its weight. The per-channel parameters each hold 1 or channels_out values, scale perhaps as
// many per term, and next_threshold per plane of the next bits.
struct ConvParameters {
  std::vector<float> scale, bias, gamma, slope, shift, next_threshold;
  int64_t next_planes = 1;
  bool has_link = false;
  HasFactors factors{};
  Element element = Element::kFloat32;  // of link, residual and y
};

// `rows` rows of a value per channel, from one for all, one per channel, or all of them, and `padding` up to whole blocks;
// a pointer into `storage`.
const float* Expand(const std::vector<float>& values, int64_t rows, int64_t channels, float padding,
                    AlignedVector<float>* storage);

// The per-channel parameters as the kernels want them, padded to whole blocks: the owner of what ConvConst points to.
class Epilogue {
 public:
  // Sets the epilogue's fields of `constant`: element, scale to next_threshold, channels_out, words_out, next_planes.
  Epilogue(const ConvParameters& parameters, int64_t channels_out, ConvConst* constant, int64_t terms = 1);
  Epilogue(const Epilogue&) = delete;
  Epilogue& operator=(const Epilogue&) = delete;

 private:
  AlignedVector<float> scale_, bias_, gamma_, slope_, shift_, next_threshold_;
};

constexpr int64_t kMostPlanes = 64;  // of a conv's input, before them in its map, or of the bits it makes

// Throws InvalidModel unless `value` is within [lowest, highest].
void RequireRange(const char* name, int64_t value, int64_t lowest, int64_t highest);

constexpr int64_t kMostPanelInputs = 65535;  // of an output whose mismatches Kernels::panel_blocks count in 16 bits
constexpr int64_t kMaxExtent = int64_t{1} << 20;  // sides of maps and kernels, strides, pads, dilations, channels

// Throws InvalidModel unless every number is in range and the sizes fit each other.
void ValidateSpec(const ConvSpec& spec);

// Output extent of one axis; 0 or less when the kernel does not fit.
int64_t OutputExtent(int64_t size, int64_t kernel, int64_t stride, int64_t pad_begin, int64_t pad_end,
                     int64_t dilation);

// Offset of the link window of one axis (docs/ops.md): the stride's window around the centre of the receptive field.
int64_t LinkOffset(int64_t kernel, int64_t stride, int64_t pad_begin, int64_t dilation);

// Everything that does not depend on the input's shape: interleaved weights, masks, padded parameters,
// prefix sums for the border corrections. Immutable after construction, so any number of threads may share it.
class ConvPlan {
 public:
  // `weight` is the neutral layout [bases * channels_out / group, kernel_h, kernel_w, words] of docs/ops.md.
  // Bits past the last channel are ignored. The weights are laid out for `kernels`. Throws InvalidModel.
  ConvPlan(const ConvSpec& spec, const ConvParameters& parameters, const uint64_t* weight, const Kernels& kernels);
  ConvPlan(const ConvPlan&) = delete;
  ConvPlan& operator=(const ConvPlan&) = delete;

  const ConvSpec& spec() const { return spec_; }
  const ConvConst& constant() const { return constant_; }
  bool depthwise() const { return constant_.depthwise != nullptr; }
  bool has_link() const { return constant_.gamma != nullptr; }
  const Kernels& kernels() const { return kernels_; }
  HasFactors factors() const { return factors_; }
  // Whether all output channels see the same inputs, so that ConvRow::nonzeros serves them all.
  bool shares_nonzeros() const { return spec_.ternary && spec_.group == 1; }
  // Whether a ternary map is one of nibbles; see ConvCall.
  bool pairs_nibbles() const { return shares_nonzeros() && kernels_.panel_blocks > 0 && blocks_[0].masks == kNoMask; }
  int64_t padded_channels_out() const { return static_cast<int64_t>(blocks_.size()) / spec_.bases * 16; }

  // base[b][o] for an output pixel whose taps inside the map are rows [row_begin, row_end) and columns
  // [column_begin, column_end), when the kernel visits whole rows of taps and padding bits are 0:
  //   accumulator = K_inside - 2 * (mismatches - popcount(weight bits of the padded taps)) = base - 2 * mismatches,
  // or half of that; see halved_.
  void FillBase(int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, int32_t* base) const;

 private:
  // Outputs whose scale was below 0 have weight and scale turned round: the same products, and the accumulators rise with
  // the value, as bit_limits need it.
  struct Turned {
    ConvParameters parameters;
    const uint64_t* given;      // the model's weight
    std::vector<uint64_t> own;  // or empty: nothing was to be turned
    const uint64_t* weight() const { return own.empty() ? given : own.data(); }
  };
  static Turned TurnRound(const ConvSpec& spec, const ConvParameters& parameters, const uint64_t* weight);
  ConvPlan(const ConvSpec& spec, const Kernels& kernels, const Turned& turned);
  void LayOutBlocks();
  void LayOutWeights();
  void Interleave(const uint64_t* weight);
  void FillLane(const uint64_t* weight, size_t block, size_t lane, bool panel, size_t in_panel);
  void KeepDepthwise(const uint64_t* weight);
  void SumPrefixes(const uint64_t* weight);
  void FindBitLimits();
  void MapLinkChannels();
  void FindLinkPeriod();

  ConvSpec spec_;
  const Kernels& kernels_;
  const HasFactors factors_;
  const bool halved_;  // bases, which are even, are held by half and scale is doubled, so that a mismatch counts once
  ConvConst constant_{};
  Epilogue epilogue_;
  std::vector<Block> blocks_;
  AlignedVector<uint32_t> weights_, masks_;
  AlignedVector<uint8_t> nibbles_;
  AlignedVector<uint64_t> depthwise_;
  std::vector<int32_t> prefix_;  // [kernel_h + 1][kernel_w + 1][bases][padded O]: weight bits in taps above and left
  AlignedVector<int32_t> bit_limits_;
  std::vector<int32_t> link_first_, link_count_;
};

}  // namespace binarize
