// The interface between the ISA-neutral core and the instruction-set kernels.
//
// Only plain data here, no std types: an ISA file is compiled with its own target flags, and an inline
// std function instantiated there could be picked by the linker for callers on a CPU without that ISA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace binarize {

// The feature stream: the elements of link, residual and y. Arithmetic is float32 whatever the stream is.
enum class Element { kFloat32, kFloat16 };

// A float16 of the stream: IEEE binary16, as bits.
struct Half {
  uint16_t bits;
};

// Sixteen consecutive output channels: the unit of weight interleaving, of the epilogue and of packed output.
// The channels of the block's groups lie in uint32 words [first, first + span) of every tap.
struct Block {
  size_t first;         // uint32 words
  size_t span;          // uint32 words per tap
  size_t weights;       // offset into ConvConst::weights: [kh * kw][span][16]
  size_t nibbles;       // offset into ConvConst::nibbles of the panel that starts here; only unmasked blocks have one
  size_t masks;         // offset into ConvConst::masks: [span][16], or kNoMask
  size_t alike;         // this block and the next ones that share `first` and `span`, need no mask, and may be tiled
  size_t lanes;         // valid output channels, 1..16
  size_t link_terms;    // channels summed per output by the link: 1, or more for squeeze
  bool link_is_run;     // link channels of the lanes are consecutive, and every lane sums link_terms of them
  size_t link_more;     // one run, of which lanes [0, more) sum link_terms and the others one less; 0: no such thing
  size_t link_wrap;     // one term, and the lanes [0, wrap) and those from wrap on are two runs; 0: no such thing
};
constexpr size_t kNoMask = static_cast<size_t>(-1);

// Constant for the life of a kernel. Per-channel arrays have 16 * block_count entries; null means neutral.
//
// An output is a sum of `terms`: for each base of the weight, each plane of the input, planes running fastest.
struct ConvConst {
  Element element;           // of link, residual and y
  size_t terms, planes, bases;
  bool ternary;              // inputs are -1, 0 or 1, and 32 channels of the map are two words; see ConvCall
  size_t kernel_h, kernel_w;
  size_t channels_out;
  size_t block_count;
  const Block* blocks;       // [bases][block_count]; those of one base differ from another's in their weights alone
  const uint32_t* weights;   // see Block
  const uint8_t* nibbles;    // panels of Kernels::panel_blocks blocks: [kh * kw][span][8][blocks][16], low nibble first
  const uint32_t* masks;     // see Block
  const uint64_t* depthwise; // [bases][kh * kw][depthwise_step], only for depthwise convs
  size_t depthwise_step;     // words_in + 7: the words of a tap repeat, so that any 8 from a word on are one load
  size_t words_in;           // uint64 words per plane of bits of an input pixel
  size_t words_out;          // uint64 words per plane of bits of an output pixel
  size_t next_planes;        // planes of bits that are made of an output pixel, each with thresholds of its own
  size_t next_step;          // uint16 of these bits per output pixel

  bool counts_once;           // accumulator = base - mismatches, not twice them; see ConvPlan
  bool counts_fit_int16;      // the mismatches of an output are below 2^15 - 1; not for ternary convs
  const float* scale;         // [terms][16 * block_count]
  const float* bias;
  const float* gamma;         // null: no link
  const float* slope;         // null: no activation
  bool slope_is_gentle;       // all at most 1 and none 0: t > 0 ? t : slope * t is the larger of t and slope * t
  const float* shift;         // null: none
  const float* next_threshold;  // [next_planes][..], of the float32 value before it is rounded to the stream's type
  const int32_t* bit_limits;    // [next_planes][..]: where ConvRow::only_bits, a bit is 1 if the accumulator is above it
  const int32_t* link_first;  // first link channel of each output channel
  const int32_t* link_count;  // link channels summed for each output channel
  size_t link_period;         // blocks so far apart add the same channels of the link; block_count if none do
  size_t link_step;           // distance of the channels of one sum: out channels per group
};

// Constant for one call of the operator.
//
// 32 channels of a plane of the map are a word of signs; those of a ternary conv are two neighbouring words, the signs
// and a 1 for every input that is not 0, as none is in the padding. Where panels count such a pair it is one of
// nibbles: byte b of the first word is nibble 2b of the signs and, above it, of the nonzeros; the second word has the
// nibbles 2b + 1.
struct ConvCall {
  size_t row_step;    // uint32 words from one kernel row to the next in the (column-padded) map
  size_t tap_step;    // uint32 words from one tap to the next in a kernel row
  size_t pixel_step;  // uint32 words from one output pixel to the next
  size_t plane_step;  // uint32 words from one plane to the next
  size_t nonzeros_step;  // from ConvRow::nonzeros of one plane to those of the next
  size_t map_h, map_w;       // link map
  size_t link_channels;
  int64_t link_stride, link_offset;  // columns: the window of output column i starts at i * stride + offset
};

// One output row, columns [begin, end). Pointers are those of column 0.
struct ConvRow {
  const uint32_t* bits;       // first tap row inside the map, first column of the padded row
  size_t tap_begin, tap_end;  // kernel rows inside the map
  size_t begin, end;
  const float* scale;         // of this image: ConvConst::scale, or that times a gate
  const float* factor;        // multiplies the accumulators of a pixel, per output column; null when neutral
  const int32_t* base;        // [column class][bases][16 * block_count]: accumulator = base - 2 * mismatches; see
                              // `counts_once`. Not for ternary convs
  const uint32_t* column_class;  // per output column; null: class 0 everywhere
  const int32_t* nonzeros;    // of a ternary conv of one group, per output column: the inputs under the kernel that are
                              // not 0; accumulator = nonzeros - 2 * mismatches. More groups are counted by the kernel
  const void* link;           // start of this image; null when neutral
  size_t link_row_begin, link_row_end;  // rows of the link window inside the map
  const void* residual;       // null when neutral
  void* y;                    // null when not wanted
  uint16_t* next_bits;        // [column][next_planes][words_out * 4]; null when not wanted
  bool only_bits;             // nothing else is wanted or added, so that ConvConst::bit_limits decide
};

// What a kernel computes in one call. Depthwise kernels always get all blocks.
struct ConvWork {
  const ConvRow* rows;
  size_t row_count;
  size_t first_block, last_block;  // a multiple of Kernels::tile_blocks, and one past the last
};

struct PackJob {
  Element element;          // of x; the threshold is float32
  const void* x;            // [pixels, channels]
  const float* threshold;   // [planes, channels]
  size_t threshold_step;    // 1: per channel, 0: one for all
  uint64_t* bits;           // [pixels, planes, words]
  size_t pixels, planes, channels, words;
};

// Pixels of one image. Parameters have a value per channel and are readable up to a multiple of 16 channels.
struct ActivateJob {
  Element x_element;      // of x: the stream's, or float32
  Element stream;         // of residual and y
  const void* x;          // [pixels, x_step], of which the first channels are meant
  const float* gate;      // [channels], null when neutral
  const float* scale;
  const float* bias;
  const void* residual;   // [pixels, channels], null when neutral; y may be its memory, or that of x
  const float* slope;
  const float* shift;
  const float* threshold;  // [planes][channels up to a multiple of 16], of the float32 value before it is rounded
  void* y;                // null when not wanted
  uint64_t* bits;         // [pixels, planes, words], null when not wanted
  const float* gamma;     // [link_channels], and
  void* link;             // [pixels, link_channels] of the stream's element: what ActivateLink gives instead of y
  size_t pixels, channels, words, planes, x_step, link_channels;
};

// The rows [first_row, last_row) of the output of one image.
struct PoolJob {
  Element element;  // of x and y
  const void* x;    // [map_h, map_w, channels]
  void* y;          // [.., out_w, channels], row 0
  size_t map_h, map_w, channels, out_w;
  size_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  size_t first_row, last_row;
  size_t whole_window;  // average: what every sum is divided by; 0: the pixels of the window inside the map
};

// The sums of the rows [first_row, last_row) of one image, pixel by pixel, from 0.
struct RowSumsJob {
  Element element;  // of x
  const void* x;    // [rows, width, channels]
  float* sums;      // [rows, channels]
  size_t width, channels;
  size_t first_row, last_row;
};

// A vector times a matrix: y[o] = sum of x[i] * weight[i][o], fused and ascending, from 0.
struct ProjectJob {
  const float* x;       // [inputs]
  const float* weight;  // [inputs][outputs]
  float* y;             // [outputs]
  size_t inputs, outputs;
};

// The int8 convolution (docs/ops.md, "Int8Conv2d"). Constant for the life of a kernel.
struct Int8Const {
  ConvConst epilogue;      // what follows the sums; of its blocks only the lanes count
  const void* weights;     // [block][kernel_h][steps][16][Kernels::taps_per_step], taps of the kernels' type
  const int32_t* base;     // [16 * block_count]: the accumulator is base + sum
  size_t kernel_h;
  size_t steps;            // groups of taps in a row of the kernel, of all channels; those that fill the last one weigh 0
  bool pools_values;       // a window has the larger of the values of its largest and its smallest sum, not of the former
};

// A row of the image: q = zero_point + round(clamp(x * factor)), in [0, 255]. NaN gives 0.
struct QuantizeJob {
  const float* x;       // of the first channel, [pixels]
  size_t channel_step;  // floats to the same row of the next channel
  void* q;              // [pixels][channels], taps of the kernels' type
  size_t pixels, channels;
  float factor;
  int32_t zero_point;
};

// The sums of products of one row of output pixels.
struct Int8SumsJob {
  const void* map;         // first row under the kernel, [pixels][channels], padding included; readable up to the last step
  size_t row_step, pixel_step;  // taps
  size_t pixels;
  int32_t* sums;           // [pixels][16 * block_count]
};

// Maxima of sums over the windows of a pool (or single sums), then the epilogue: one output row.
struct Int8FinishJob {
  const int32_t* const* rows;  // the rows of sums under the window
  size_t row_count, row_width;
  size_t pool_w, pool_stride, pool_pad;  // columns; every window has one inside the row
  ConvRow out;                 // begin, end, residual, y, next_bits
};

// What an instruction set provides.
struct Kernels {
  size_t panel_blocks;  // 0: `conv` reads ConvConst::weights; else, for blocks without masks, panels of so many blocks
  size_t tile_blocks;   // of a dense conv's widest tile: its blocks are split between threads at multiples of this
  size_t taps_per_step;  // of an int8 convolution, in 4 bytes: 4 taps of one byte, or 2 of an int16
  void (*pack)(const PackJob& job);
  void (*conv)(const ConvConst& constant, const ConvCall& call, const ConvWork& work);
  void (*depthwise)(const ConvConst& constant, const ConvCall& call, const ConvWork& work);
  void (*activate)(const ActivateJob& job);
  void (*max_pool)(const PoolJob& job);
  void (*average_pool)(const PoolJob& job);
  void (*row_sums)(const RowSumsJob& job);
  void (*project)(const ProjectJob& job);
  void (*quantize)(const QuantizeJob& job);
  void (*int8_sums)(const Int8Const& constant, const Int8SumsJob& job);
  void (*int8_finish)(const Int8Const& constant, const Int8FinishJob& job);
};

// One per folder of isa/; a build defines those its target can have.
extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512BwKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

// What an instruction set has that adds little to another one's kernels; see dispatch.cc.
void AmxInt8Sums(const Int8Const& constant, const Int8SumsJob& job);
void AvxVnniQuantize(const QuantizeJob& job);
void AvxVnniInt8Sums(const Int8Const& constant, const Int8SumsJob& job);

}  // namespace binarize
