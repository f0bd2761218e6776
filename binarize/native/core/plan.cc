// Validation, weight interleaving, border prefix sums and link channel map. Runs once per kernel, so it is
// written for clarity; nothing here is on the path of an inference.
#include "core/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "core/bits.h"
#include "core/checked.h"
#include "core/half.h"

namespace binarize {
namespace {

constexpr size_t kNibbles = 8;                   // of a uint32
constexpr int64_t kMaxTerms = int64_t{1} << 28;  // K: keeps base - 2 * mismatches inside int32

int64_t GroupOf(const ConvSpec& s, int64_t channel_out) { return channel_out / (s.channels_out / s.group); }

// Mask of the channels [begin, end) within uint32 word `word`.
uint32_t ChannelMask(int64_t begin, int64_t end, int64_t word) {
  const int64_t low = std::clamp<int64_t>(begin - word * kHalfBits, 0, kHalfBits);
  const int64_t high = std::clamp<int64_t>(end - word * kHalfBits, 0, kHalfBits);
  if (high <= low) return 0;
  return static_cast<uint32_t>(((uint64_t{1} << high) - 1) & ~((uint64_t{1} << low) - 1));
}

// uint32 word `word` of tap `tap` of neutral weight row `row`.
uint32_t NeutralWord(const ConvSpec& s, const uint64_t* weight, int64_t row, int64_t tap, int64_t word) {
  const int64_t words = WordsFor(s.channels_in);
  const uint64_t both = weight[(row * s.kernel_h * s.kernel_w + tap) * words + word / 2];
  return static_cast<uint32_t>(both >> (word % 2 ? 32 : 0));
}

bool AllEqual(const std::vector<float>& values, float neutral) {
  return std::all_of(values.begin(), values.end(), [neutral](float v) { return v == neutral; });
}

// Accumulators are even where every tap adds an even number of terms. Half of one times twice the scale is the same
// product, unless the scale overflows, or half of one times a factor does not where the whole does.
bool CanHalve(const ConvSpec& s, const ConvParameters& p) {
  constexpr float kMost = 0x1p126f;
  const auto small = [](float scale) { return scale > -kMost && scale < kMost; };
  return !s.ternary && !p.factors.any() && s.channels_in / s.group % 2 == 0 &&
         std::all_of(p.scale.begin(), p.scale.end(), small);
}

ConvParameters Halved(ConvParameters p) {
  for (float& scale : p.scale) scale *= 2.0f;
  return p;
}

}  // namespace

const float* Expand(const std::vector<float>& values, int64_t rows, int64_t channels, float padding,
                    AlignedVector<float>* storage) {
  const size_t padded = static_cast<size_t>(RoundUp(channels, kLanes)), count = static_cast<size_t>(channels);
  const size_t row_step = values.size() > count ? count : 0, step = values.size() == 1 ? 0 : 1;
  storage->assign(static_cast<size_t>(rows) * padded, padding);
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    for (size_t o = 0; o < count; ++o) (*storage)[row * padded + o] = values.at(row * row_step + o * step);
  }
  return storage->data();
}

void RequireRange(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  Require(value >= lowest && value <= highest, [&] {
    return std::string(name) + " must be in [" + std::to_string(lowest) + ", " + std::to_string(highest) + "], got " +
           std::to_string(value);
  });
}

Epilogue::Epilogue(const ConvParameters& p, int64_t channels_out, ConvConst* constant, int64_t terms) {
  constant->element = p.element;
  constant->channels_out = static_cast<size_t>(channels_out);
  constant->words_out = static_cast<size_t>(WordsFor(channels_out));
  const auto expand = [&](const std::vector<float>& values, float padding, AlignedVector<float>* storage) {
    return Expand(values, 1, channels_out, padding, storage);
  };
  constant->scale = Expand(p.scale, terms, channels_out, 0.0f, &scale_);
  constant->bias = expand(p.bias, 0.0f, &bias_);
  if (p.has_link) constant->gamma = expand(p.gamma, 0.0f, &gamma_);
  if (!AllEqual(p.slope, 1.0f)) constant->slope = expand(p.slope, 1.0f, &slope_);
  constant->slope_is_gentle =
      std::all_of(p.slope.begin(), p.slope.end(), [](float slope) { return slope <= 1.0f && slope != 0.0f; });
  if (!AllEqual(p.shift, 0.0f)) constant->shift = expand(p.shift, 0.0f, &shift_);
  std::vector<float> thresholds = p.next_threshold;
  if (p.element == Element::kFloat16) {
    for (float& threshold : thresholds) threshold = ThresholdBeforeRounding(threshold);
  }
  constant->next_planes = static_cast<size_t>(p.next_planes);
  constant->next_step = constant->next_planes * constant->words_out * 4;
  constant->next_threshold =
      Expand(thresholds, p.next_planes, channels_out, std::numeric_limits<float>::infinity(), &next_threshold_);
}

void ValidateSpec(const ConvSpec& s) {
  RequireRange("attribute channels", s.channels_in, 1, kMaxExtent);
  RequireRange("attribute group", s.group, 1, kMaxExtent);
  RequireRange("number of output channels", s.channels_out, 1, kMaxExtent);
  Require(s.channels_in % s.group == 0, "group " + std::to_string(s.group) + " does not divide channels " +
                                            std::to_string(s.channels_in));
  Require(s.channels_out % s.group == 0, "group " + std::to_string(s.group) + " does not divide output channels " +
                                             std::to_string(s.channels_out));
  RequireRange("kernel height", s.kernel_h, 1, kMaxExtent);
  RequireRange("kernel width", s.kernel_w, 1, kMaxExtent);
  RequireRange("attribute strides[0]", s.stride_h, 1, kMaxExtent);
  RequireRange("attribute strides[1]", s.stride_w, 1, kMaxExtent);
  RequireRange("attribute pads[0]", s.pad_top, 0, kMaxExtent);
  RequireRange("attribute pads[1]", s.pad_left, 0, kMaxExtent);
  RequireRange("attribute pads[2]", s.pad_bottom, 0, kMaxExtent);
  RequireRange("attribute pads[3]", s.pad_right, 0, kMaxExtent);
  RequireRange("attribute dilations[0]", s.dilation_h, 1, kMaxExtent);
  RequireRange("attribute dilations[1]", s.dilation_w, 1, kMaxExtent);
  RequireRange("attribute planes", s.planes, 1, kMostPlanes);
  RequireRange("attribute bases", s.bases, 1, kMostPlanes);
  RequireRange("attribute first_plane", s.first_plane, 0, kMostPlanes - 1);
  const int64_t taps = CheckedProduct(s.kernel_h, s.kernel_w, "kernel area");
  const int64_t terms = CheckedProduct(taps, s.channels_in / s.group, "number of terms of a dot product");
  RequireRange("number of terms of a dot product", terms, 1, kMaxTerms);
}

int64_t OutputExtent(int64_t size, int64_t kernel, int64_t stride, int64_t pad_begin, int64_t pad_end,
                     int64_t dilation) {
  const int64_t room = size + pad_begin + pad_end - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

int64_t LinkOffset(int64_t kernel, int64_t stride, int64_t pad_begin, int64_t dilation) {
  return CeilDiv(dilation * (kernel - 1) - (stride - 1) - 2 * pad_begin, 2);
}

// Only of one term, as a weight serves several. A bias of -0 would tell the sign of a product that is 0.
ConvPlan::Turned ConvPlan::TurnRound(const ConvSpec& s, const ConvParameters& p, const uint64_t* weight) {
  ValidateSpec(s);  // here, as nothing of a plan comes before
  Turned turned{p, weight, {}};
  const auto falls = [&](int64_t o) {
    const float scale = p.scale[p.scale.size() == 1 ? 0 : static_cast<size_t>(o)];
    const float bias = p.bias[p.bias.size() == 1 ? 0 : static_cast<size_t>(o)];
    return scale < 0.0f && !(bias == 0.0f && std::signbit(bias));
  };
  const int64_t words = WordsFor(s.channels_in), rows = s.channels_out / s.group, taps = s.kernel_h * s.kernel_w;
  const int64_t in_per_group = s.channels_in / s.group;
  for (int64_t o = 0; s.terms() == 1 && o < s.channels_out; ++o) {
    if (!falls(o)) continue;
    if (turned.own.empty()) {
      turned.own.assign(weight, weight + rows * taps * words);
      if (p.scale.size() == 1) turned.parameters.scale.assign(static_cast<size_t>(s.channels_out), p.scale[0]);
    }
    turned.parameters.scale[static_cast<size_t>(o)] *= -1.0f;
    const int64_t begin = GroupOf(s, o) * in_per_group, end = begin + in_per_group;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t half = begin / kHalfBits; half < CeilDiv(end, kHalfBits); ++half) {
        const uint64_t mask = uint64_t{ChannelMask(begin, end, half)} << (half % 2 ? 32 : 0);
        turned.own[static_cast<size_t>((o % rows * taps + tap) * words + half / 2)] ^= mask;
      }
    }
  }
  return turned;
}

ConvPlan::ConvPlan(const ConvSpec& spec, const ConvParameters& parameters, const uint64_t* weight, const Kernels& kernels)
    : ConvPlan(spec, kernels, TurnRound(spec, parameters, weight)) {}

ConvPlan::ConvPlan(const ConvSpec& spec, const Kernels& kernels, const Turned& turned)
    : spec_(spec),
      kernels_(kernels),
      factors_(turned.parameters.factors),
      halved_(CanHalve(spec, turned.parameters)),
      epilogue_(halved_ ? Halved(turned.parameters) : turned.parameters, spec.channels_out, &constant_, spec.terms()) {
  const uint64_t* weight = turned.weight();
  constant_.counts_once = halved_;
  constant_.kernel_h = static_cast<size_t>(spec.kernel_h);
  constant_.kernel_w = static_cast<size_t>(spec.kernel_w);
  constant_.words_in = static_cast<size_t>(WordsFor(spec.channels_in));
  constant_.planes = static_cast<size_t>(spec.planes);
  constant_.bases = static_cast<size_t>(spec.bases);
  constant_.terms = constant_.planes * constant_.bases;
  constant_.ternary = spec.ternary;
  const int64_t most = spec.kernel_h * spec.kernel_w * RoundUp(spec.channels_in / spec.group, kHalfBits);
  constant_.counts_fit_int16 = !spec.ternary && most < INT16_MAX;

  LayOutBlocks();
  // The depthwise kernels take signs; ternary inputs go the way of other grouped convs.
  if (spec.group == spec.channels_in && spec.group == spec.channels_out && !spec.ternary) {
    KeepDepthwise(weight);
  } else {
    LayOutWeights();
    Interleave(weight);
  }
  SumPrefixes(weight);
  FindBitLimits();

  MapLinkChannels();  // fills fields of the blocks, so it comes before they are published
  constant_.blocks = blocks_.data();
  constant_.block_count = blocks_.size() / constant_.bases;
  constant_.bit_limits = bit_limits_.empty() ? nullptr : bit_limits_.data();
  constant_.weights = weights_.data();
  constant_.nibbles = nibbles_.data();
  constant_.masks = masks_.data();
  constant_.depthwise = depthwise_.empty() ? nullptr : depthwise_.data();
  constant_.link_first = link_first_.data();
  constant_.link_count = link_count_.data();
  constant_.link_step = static_cast<size_t>(spec.channels_out / spec.group);
}

// A block's span covers the channels of all groups its lanes belong to. Lanes of a group that does not fill the span
// get a mask. A dense conv needs none: its weights are 0 past the last channel, and ConvRun clears stray bits there.
// Blocks of a ternary grouped conv always get one: its kernel counts the nonzeros of a group. So do those with more inputs
// than the counts of a panel can hold: with masks, words are counted.
void ConvPlan::LayOutBlocks() {
  const int64_t in_per_group = spec_.channels_in / spec_.group, taps = spec_.kernel_h * spec_.kernel_w;
  for (int64_t o = 0; o < spec_.channels_out; o += kLanes) {
    const int64_t last = std::min(o + kLanes, spec_.channels_out) - 1;
    const int64_t begin = GroupOf(spec_, o) * in_per_group;
    const int64_t end = (GroupOf(spec_, last) + 1) * in_per_group;
    Block b{};
    b.first = static_cast<size_t>(begin / kHalfBits);
    b.span = static_cast<size_t>(CeilDiv(end, kHalfBits)) - b.first;
    b.lanes = static_cast<size_t>(last - o + 1);
    const bool whole_words = begin % kHalfBits == 0 && (end % kHalfBits == 0 || spec_.group == 1);
    const bool one_group = GroupOf(spec_, o) == GroupOf(spec_, last);
    const bool counts_nonzeros = spec_.ternary && !shares_nonzeros();
    const bool too_many = kernels_.panel_blocks > 0 && taps * static_cast<int64_t>(b.span) * kHalfBits > kMostPanelInputs;
    b.masks = whole_words && one_group && !counts_nonzeros && !too_many ? kNoMask : 0;
    b.alike = 1;
    blocks_.push_back(b);
  }
  for (size_t i = blocks_.size() - 1; i-- > 0;) {
    const Block& next = blocks_[i + 1];
    Block& b = blocks_[i];
    const bool same = b.first == next.first && b.span == next.span;
    if (same && b.masks == kNoMask && next.masks == kNoMask) b.alike = next.alike + 1;
  }
  const std::vector<Block> one_base = blocks_;
  for (int64_t base = 1; base < spec_.bases; ++base) blocks_.insert(blocks_.end(), one_base.begin(), one_base.end());
}

// Reserves memory for the weights: a panel of alike blocks, or words and perhaps masks of a single one.
void ConvPlan::LayOutWeights() {
  const int64_t taps = spec_.kernel_h * spec_.kernel_w;
  size_t weights = 0, masks = 0, nibbles = 0;
  for (size_t i = 0; i < blocks_.size();) {
    Block& b = blocks_[i];
    const size_t words = static_cast<size_t>(CheckedProduct(taps, static_cast<int64_t>(b.span), "interleaved weight"));
    if (b.masks == kNoMask && kernels_.panel_blocks > 0) {
      const size_t end = std::min(i + std::min(b.alike, kernels_.panel_blocks), blocks_.size());
      for (; i < end; ++i) blocks_[i].nibbles = nibbles;
      nibbles += words * kNibbles * kernels_.panel_blocks * kLanes;
    } else {
      b.weights = weights;
      weights += words * kLanes;
      if (b.masks != kNoMask) {
        b.masks = masks;
        masks += b.span * kLanes;
      }
      ++i;
    }
    Require(weights + nibbles < static_cast<size_t>(kMaxElements), "the interleaved weight is too large");
  }
  weights_.assign(weights, 0);
  masks_.assign(masks, 0);
  nibbles_.assign(nibbles, 0);
}

// Words: [block][tap][word of the span][lane], so that one 512-bit load meets one broadcast word of activations.
// Nibbles: [panel][tap][word][nibble][block][lane] bytes, so that one load meets one nibble of activations.
void ConvPlan::Interleave(const uint64_t* weight) {
  size_t in_panel = 0;  // the block's place in its panel
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& b = blocks_[i];
    const bool panel = b.masks == kNoMask && kernels_.panel_blocks > 0;
    const bool same = panel && i > 0 && blocks_[i - 1].masks == kNoMask && blocks_[i - 1].nibbles == b.nibbles;
    in_panel = same ? in_panel + 1 : 0;
    for (size_t lane = 0; lane < b.lanes; ++lane) FillLane(weight, i, lane, panel, in_panel);
  }
}

void ConvPlan::FillLane(const uint64_t* weight, size_t block, size_t lane, bool panel, size_t in_panel) {
  const Block& b = blocks_[block];
  const size_t per_base = blocks_.size() / constant_.bases;
  const int64_t base = static_cast<int64_t>(block / per_base), rows = spec_.channels_out / spec_.group;
  const int64_t in_per_group = spec_.channels_in / spec_.group;
  const int64_t o = static_cast<int64_t>(block % per_base * kLanes + lane);
  const int64_t begin = GroupOf(spec_, o) * in_per_group;
  const size_t taps = constant_.kernel_h * constant_.kernel_w;
  for (size_t k = 0; k < b.span; ++k) {
    const int64_t word = static_cast<int64_t>(b.first + k);
    const uint32_t mask = ChannelMask(begin, begin + in_per_group, word);
    if (b.masks != kNoMask) masks_[b.masks + k * kLanes + lane] = mask;
    for (size_t tap = 0; tap < taps; ++tap) {
      const int64_t row = base * rows + o % rows;
      const uint32_t bits = NeutralWord(spec_, weight, row, static_cast<int64_t>(tap), word) & mask;
      const size_t step = tap * b.span + k;
      if (!panel) {
        weights_[b.weights + step * kLanes + lane] = bits;
        continue;
      }
      for (size_t nibble = 0; nibble < kNibbles; ++nibble) {
        const size_t line = (step * kNibbles + nibble) * kernels_.panel_blocks + in_panel;
        nibbles_[b.nibbles + line * kLanes + lane] = (bits >> (4 * nibble)) & 15;
      }
    }
  }
}

// Depthwise weights already meet the activations bit by bit; only stray bits past the last channel go.
void ConvPlan::KeepDepthwise(const uint64_t* weight) {
  const size_t words = constant_.words_in;
  const size_t taps = constant_.bases * constant_.kernel_h * constant_.kernel_w;
  const size_t step = words + 7;
  const uint64_t last = LastWordMask(spec_.channels_in);
  depthwise_.resize(taps * step);
  for (size_t tap = 0; tap < taps; ++tap) {
    for (size_t i = 0; i < step; ++i) {
      const size_t word = i % words;
      depthwise_[tap * step + i] = weight[tap * words + word] & (word + 1 == words ? last : ~uint64_t{0});
    }
  }
  constant_.depthwise_step = step;
}

void ConvPlan::SumPrefixes(const uint64_t* weight) {
  if (spec_.pad_left == 0 && spec_.pad_right == 0) return;  // no tap of a visited row is ever outside
  if (spec_.ternary) return;                                // padding counts nothing
  const int64_t in_per_group = spec_.channels_in / spec_.group;
  const int64_t out_per_group = spec_.channels_out / spec_.group;
  const int64_t channels = padded_channels_out(), padded = spec_.bases * channels;
  const int64_t columns = spec_.kernel_w + 1;
  const int64_t cells = CheckedProduct(spec_.kernel_h + 1, columns, "border table");
  prefix_.assign(static_cast<size_t>(CheckedProduct(cells, padded, "border table")), 0);
  for (int64_t r = 0; r < spec_.kernel_h; ++r) {
    for (int64_t c = 0; c < spec_.kernel_w; ++c) {
      const int32_t* above = &prefix_[static_cast<size_t>((r * columns + c + 1) * padded)];
      const int32_t* corner = &prefix_[static_cast<size_t>((r * columns + c) * padded)];
      const int32_t* left = &prefix_[static_cast<size_t>(((r + 1) * columns + c) * padded)];
      int32_t* here = &prefix_[static_cast<size_t>(((r + 1) * columns + c + 1) * padded)];
      for (int64_t i = 0; i < padded; ++i) {
        const int64_t o = i % channels;
        if (o >= spec_.channels_out) continue;
        const int64_t begin = GroupOf(spec_, o) * in_per_group, end = begin + in_per_group;
        const int64_t row = i / channels * out_per_group + o % out_per_group;
        int32_t ones = 0;
        for (int64_t word = begin / kHalfBits; word < CeilDiv(end, kHalfBits); ++word) {
          ones += Popcount64(NeutralWord(spec_, weight, row, r * spec_.kernel_w + c, word) &
                             ChannelMask(begin, end, word));
        }
        here[i] = ones + above[i] + left[i] - corner[i];
      }
    }
  }
}

void ConvPlan::FillBase(int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
                        int32_t* base) const {
  const int64_t padded = spec_.bases * padded_channels_out();
  const int64_t terms =
      (row_end - row_begin) * (column_end - column_begin) * (spec_.channels_in / spec_.group);
  const int32_t unit = halved_ ? 1 : 2;  // of a mismatch
  const int32_t inside = static_cast<int32_t>(terms) / 2 * unit + static_cast<int32_t>(terms) % 2;
  const bool whole = column_begin == 0 && column_end == spec_.kernel_w;
  if (whole || row_begin >= row_end || prefix_.empty()) {
    std::fill(base, base + padded, inside);
    return;
  }
  const auto at = [&](int64_t r, int64_t c) {
    return &prefix_[static_cast<size_t>((r * (spec_.kernel_w + 1) + c) * padded)];
  };
  const int32_t *all_low = at(row_end, spec_.kernel_w), *all_high = at(row_begin, spec_.kernel_w);
  const int32_t *a = at(row_end, column_end), *b = at(row_begin, column_end);
  const int32_t *c = at(row_end, column_begin), *d = at(row_begin, column_begin);
  const int doubling = halved_ ? 0 : 1;  // a shift: the least instruction sets multiply no vectors of integers
  for (int64_t o = 0; o < padded; ++o) {
    const int32_t padding_ones = (all_low[o] - all_high[o]) - (a[o] - b[o] - c[o] + d[o]);
    base[o] = inside + (padding_ones << doubling);
  }
}

// An epilogue of one term without link, residual, gate or factor rises with the accumulator, as every rounding does: one
// accumulator divides the bits. It is found by the epilogue's own arithmetic. None is found where that need not hold: slopes
// below 0, scales that could not be turned, and what may overflow.
void ConvPlan::FindBitLimits() {
  const ConvConst& k = constant_;
  const int32_t most = static_cast<int32_t>(spec_.kernel_h * spec_.kernel_w * (spec_.channels_in / spec_.group));
  const size_t padded = static_cast<size_t>(padded_channels_out());
  if (k.terms != 1 || !depthwise_.empty()) return;  // kernels of depthwise convs and of several terms use none
  for (size_t o = 0; o < padded; ++o) {
    const float slope = k.slope != nullptr ? k.slope[o] : 1.0f, shift = k.shift != nullptr ? k.shift[o] : 0.0f;
    const float largest = std::fma(k.scale[o], static_cast<float>(most), std::fabs(k.bias[o]));
    const float whole = std::fma(largest, std::max(slope, 1.0f), std::fabs(shift));
    if (!(k.scale[o] >= 0.0f) || !(slope >= 0.0f) || !std::isfinite(whole)) return;
  }
  bit_limits_.resize(k.next_planes * padded);
  for (size_t i = 0; i < bit_limits_.size(); ++i) {
    const size_t o = i % padded;
    const auto bit = [&](int32_t accumulator) {
      float t = std::fma(static_cast<float>(accumulator), k.scale[o], k.bias[o]);
      if (k.slope != nullptr) t = t > 0.0f ? t : k.slope[o] * t;
      if (k.shift != nullptr) t = t + k.shift[o];
      return t > k.next_threshold[i];
    };
    int32_t low = -most - 1, high = most;  // the limit is in [low, high]
    while (low < high) {
      const int32_t middle = low + (high - low + 1) / 2;
      bit(middle) ? high = middle - 1 : low = middle;
    }
    bit_limits_[i] = low;
  }
}

// Identity, expand and squeeze inside each group; see docs/ops.md.
void ConvPlan::MapLinkChannels() {
  const int64_t in_per_group = spec_.channels_in / spec_.group;
  const int64_t out_per_group = spec_.channels_out / spec_.group;
  link_first_.assign(static_cast<size_t>(padded_channels_out()), 0);
  link_count_.assign(static_cast<size_t>(padded_channels_out()), 0);
  for (int64_t o = 0; o < spec_.channels_out; ++o) {
    const int64_t j = o % out_per_group;
    const int64_t start = GroupOf(spec_, o) * in_per_group;
    link_first_[static_cast<size_t>(o)] = static_cast<int32_t>(start + j % in_per_group);
    link_count_[static_cast<size_t>(o)] =
        out_per_group >= in_per_group ? 1 : static_cast<int32_t>(CeilDiv(in_per_group - j, out_per_group));
  }
  for (size_t i = 0; i < blocks_.size() / constant_.bases; ++i) {  // links are read off the first base's blocks
    Block& b = blocks_[i];
    const int32_t* first = &link_first_[i * kLanes];
    const int32_t* count = &link_count_[i * kLanes];
    b.link_terms = static_cast<size_t>(*std::max_element(count, count + b.lanes));
    const bool even = std::all_of(count, count + b.lanes, [count](int32_t terms) { return terms == count[0]; });
    size_t run = 1;  // lanes of the first run
    while (run < b.lanes && first[run] == first[run - 1] + 1) ++run;
    size_t second = run;  // where the second one ends
    while (second + 1 < b.lanes && first[second + 1] == first[second] + 1) ++second;
    b.link_is_run = even && run == b.lanes;
    const auto sums_all = [&b](int32_t terms) { return static_cast<size_t>(terms) == b.link_terms; };
    const size_t more = static_cast<size_t>(std::count_if(count, count + b.lanes, sums_all));
    const bool falls = std::is_sorted(count, count + b.lanes, std::greater<>()) &&
                       static_cast<size_t>(count[b.lanes - 1]) + 1 == b.link_terms;
    b.link_more = run == b.lanes && falls ? more : 0;
    b.link_wrap = b.link_terms == 1 && run < b.lanes && second + 1 == b.lanes ? run : 0;
  }
  FindLinkPeriod();
}

// An expanding conv's link channels repeat every channels_in output channels.
void ConvPlan::FindLinkPeriod() {
  const size_t blocks = blocks_.size() / constant_.bases;
  const size_t period = static_cast<size_t>(CeilDiv(spec_.channels_in, kLanes));
  const auto repeats = [&](const std::vector<int32_t>& values) {
    return std::equal(values.begin() + static_cast<ptrdiff_t>(period * kLanes), values.end(), values.begin());
  };
  const bool shared = period < blocks && repeats(link_first_) && repeats(link_count_);
  constant_.link_period = shared ? period : blocks;
}

}  // namespace binarize
