// AVX-512 kernels (F, BW, DQ, VL, VPOPCNTDQ).
//
//   Pack       16 channels per compare, four compares per word.
//   Conv       tiles of up to 7 pixels x 2 blocks, or 6 x 4 where a row is long and flat; a block is 16 output
//              channels, one zmm of uint32. Per step: broadcast 32 channels of a pixel, xor with 16 x 32 weights,
//              vpopcntd, add. Whole sums stay in registers until the fused epilogue stores floats and bits.
//   Depthwise  one word of 64 channels per tap: xor, then bit-sliced carry-save counters.
//
// No std headers: this file has its own target flags (see core/kernels.h).
#include <immintrin.h>

#include "core/kernels.h"

#define BINARIZE_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define BINARIZE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BINARIZE_UNROLL _Pragma("GCC unroll 8")
#endif

namespace binarize {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kMaxPixels = 7;      // x 2 blocks = 14 accumulators: divides rows of 7, 14, 28, 56
constexpr size_t kMaxPixelsWide = 6;  // x 4 blocks = 24 accumulators: the most that does not spill

BINARIZE_INLINE size_t Min(size_t a, size_t b) { return a < b ? a : b; }
BINARIZE_INLINE __mmask16 FirstLanes(size_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

// ---------------------------------------------------------------------------------------------- Pack

BINARIZE_INLINE __mmask16 Above(const PackJob& job, const float* x, size_t channel, __mmask16 lanes) {
  const __m512 value = _mm512_maskz_loadu_ps(lanes, x + channel);
  const __m512 threshold = job.threshold_step != 0 ? _mm512_maskz_loadu_ps(lanes, job.threshold + channel)
                                                   : _mm512_set1_ps(job.threshold[0]);
  return _mm512_mask_cmp_ps_mask(lanes, value, threshold, _CMP_GT_OQ);
}

void Pack(const PackJob& job) {
  for (size_t pixel = 0; pixel < job.pixels; ++pixel) {
    const float* x = job.x + pixel * job.channels;
    uint64_t* bits = job.bits + pixel * job.words;
    for (size_t word = 0; word < job.words; ++word) {
      uint64_t packed = 0;
      for (size_t quarter = 0; quarter < 4; ++quarter) {
        const size_t channel = word * 64 + quarter * kLanes;
        if (channel >= job.channels) break;
        const __mmask16 lanes = FirstLanes(Min(kLanes, job.channels - channel));
        packed |= static_cast<uint64_t>(Above(job, x, channel, lanes)) << (quarter * kLanes);
      }
      bits[word] = packed;
    }
  }
}

// ---------------------------------------------------------------------------------------------- Elastic Link

// The link's columns inside the map for one output column.
struct Window {
  size_t begin, end;
};

BINARIZE_INLINE Window LinkColumns(const ConvCall& call, size_t column) {
  const int64_t left = static_cast<int64_t>(column) * call.link_stride + call.link_offset;
  const int64_t right = left + call.link_stride;
  const int64_t width = static_cast<int64_t>(call.map_w);
  const int64_t begin = left < 0 ? 0 : (left > width ? width : left);
  const int64_t end = right < 0 ? 0 : (right > width ? width : right);
  return {static_cast<size_t>(begin), static_cast<size_t>(end)};
}

// Adds the link channels of one block of one link pixel to `sum`, channels ascending.
BINARIZE_INLINE __m512 AddLinkChannels(const ConvConst& k, const Block& b, size_t block, const float* pixel,
                                       __m512 sum) {
  const __mmask16 valid = FirstLanes(b.lanes);
  const int32_t* first = k.link_first + block * kLanes;
  if (b.link_is_run && b.link_terms == 1) {
    return _mm512_mask_add_ps(sum, valid, sum, _mm512_maskz_loadu_ps(valid, pixel + first[0]));
  }
  const __m512i counts = _mm512_loadu_si512(k.link_count + block * kLanes);
  const __m512i index = _mm512_loadu_si512(first);
  for (size_t i = 0; i < b.link_terms; ++i) {
    const __mmask16 lanes = _mm512_mask_cmpgt_epi32_mask(valid, counts, _mm512_set1_epi32(static_cast<int>(i)));
    const float* channels = pixel + i * k.link_step;
    const __m512 value = b.link_is_run ? _mm512_maskz_loadu_ps(lanes, channels + first[0])
                                       : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, index, channels, 4);
    sum = _mm512_mask_add_ps(sum, lanes, sum, value);
  }
  return sum;
}

// EL(link) of one block of one pixel, whatever its windows and channels are like.
__attribute__((noinline)) __m512 LinkValue(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                           size_t block, size_t column) {
  const Window window = LinkColumns(call, column);
  const size_t count = (row.link_row_end - row.link_row_begin) * (window.end - window.begin);
  __m512 sum = _mm512_setzero_ps();
  if (count == 0) return sum;
  for (size_t r = row.link_row_begin; r < row.link_row_end; ++r) {
    for (size_t c = window.begin; c < window.end; ++c) {
      const float* pixel = row.link + (r * call.map_w + c) * call.link_channels;
      sum = AddLinkChannels(k, k.blocks[block], block, pixel, sum);
    }
  }
  return _mm512_mul_ps(sum, _mm512_set1_ps(1.0f / static_cast<float>(count)));
}

// The link of a tile whose windows all lie inside the map and whose blocks are plain vector loads: nearly all tiles.
struct PlainLink {
  bool plain;
  size_t rows, columns, terms;  // summed per output
  const float* first;           // first row and column of the window of the tile's first pixel
};

BINARIZE_INLINE PlainLink FindPlainLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                        size_t blocks, size_t column, size_t pixels) {
  PlainLink link{};
  const int64_t stride = call.link_stride;
  const int64_t left = static_cast<int64_t>(column) * stride + call.link_offset;
  const int64_t right = left + static_cast<int64_t>(pixels) * stride;
  const bool inside = left >= 0 && right <= static_cast<int64_t>(call.map_w) && row.link_row_begin < row.link_row_end;
  link.plain = inside;
  link.terms = k.blocks[block].link_terms;
  for (size_t n = 0; n < blocks; ++n) {
    const Block& b = k.blocks[block + n];
    link.plain = link.plain && b.link_is_run && b.link_is_even && b.link_terms == link.terms;
  }
  link.rows = row.link_row_end - row.link_row_begin;
  link.columns = static_cast<size_t>(stride);
  if (link.plain) {
    link.first = row.link + (row.link_row_begin * call.map_w + static_cast<size_t>(left)) * call.link_channels;
  }
  return link;
}

BINARIZE_INLINE __m512 PlainLinkSum(const ConvConst& k, const ConvCall& call, const PlainLink& link,
                                      const float* pixel, __mmask16 lanes) {
  __m512 sum = _mm512_setzero_ps();  // summing from +0.0 turns -0.0 into +0.0, as specified
  for (size_t r = 0; r < link.rows; ++r) {
    for (size_t c = 0; c < link.columns; ++c) {
      const float* channels = pixel + (r * call.map_w + c) * call.link_channels;
      for (size_t i = 0; i < link.terms; ++i) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, channels + i * k.link_step));
      }
    }
  }
  return sum;
}

// ---------------------------------------------------------------------------------------------- Epilogue

// The stages of docs/ops.md, "Value". Each runs over the whole tile in registers, so an optional stage costs one
// branch per tile.
template <int PIXELS, int BLOCKS>
struct Tiled {
  using Sums = __m512i[PIXELS][BLOCKS];  // mismatches
  using Values = __m512[PIXELS][BLOCKS];
  using Lanes = __mmask16[BLOCKS];
};

// t = fma(float(base - 2 * mismatches), scale, bias); neighbouring pixels mostly share their base.
template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void Scale(const ConvConst& k, const ConvRow& row, size_t block, size_t column,
                           const typename Tiled<PIXELS, BLOCKS>::Sums& sums,
                           typename Tiled<PIXELS, BLOCKS>::Values& t) {
  const int32_t* base[PIXELS];
  bool same_border = true;
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    const size_t border = row.column_class != nullptr ? row.column_class[column + m] : 0;
    base[m] = row.base + (border * k.block_count + block) * kLanes;
    same_border = same_border && base[m] == base[0];
  }
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const __m512 scale = _mm512_loadu_ps(k.scale + (block + n) * kLanes);
    const __m512 bias = _mm512_loadu_ps(k.bias + (block + n) * kLanes);
    const __m512i shared = _mm512_loadu_si512(base[0] + n * kLanes);
    if (same_border) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        const __m512i sum = _mm512_sub_epi32(shared, _mm512_slli_epi32(sums[m][n], 1));
        t[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
      }
    } else {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        const __m512i own = _mm512_loadu_si512(base[m] + n * kLanes);
        const __m512i sum = _mm512_sub_epi32(own, _mm512_slli_epi32(sums[m][n], 1));
        t[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
      }
    }
  }
}

// t = fma(gamma, EL(link), t), by the cheapest of three ways: one load, sums of loads, or anything.
template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void AddLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                             size_t column, const typename Tiled<PIXELS, BLOCKS>::Lanes& lanes,
                             typename Tiled<PIXELS, BLOCKS>::Values& t) {
  const PlainLink link = FindPlainLink(k, call, row, block, BLOCKS, column, PIXELS);
  const size_t link_pixels = link.rows * link.columns;
  const size_t step = link.columns * call.link_channels;
  const __m512 share = _mm512_set1_ps(link.plain ? 1.0f / static_cast<float>(link_pixels) : 0.0f);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const __m512 gamma = _mm512_loadu_ps(k.gamma + (block + n) * kLanes);
    const float* channels = link.first + k.link_first[(block + n) * kLanes];
    if (link.plain && link_pixels * link.terms == 1) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        const __m512 value = _mm512_maskz_loadu_ps(lanes[n], channels + m * step);
        t[m][n] = _mm512_fmadd_ps(gamma, _mm512_add_ps(_mm512_setzero_ps(), value), t[m][n]);
      }
    } else if (link.plain) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        const __m512 sum = PlainLinkSum(k, call, link, channels + m * step, lanes[n]);
        t[m][n] = _mm512_fmadd_ps(gamma, _mm512_mul_ps(sum, share), t[m][n]);
      }
    } else {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        t[m][n] = _mm512_fmadd_ps(gamma, LinkValue(k, call, row, block + n, column + m), t[m][n]);
      }
    }
  }
}

template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void AddResidual(const ConvConst& k, const float* residual,
                                 const typename Tiled<PIXELS, BLOCKS>::Lanes& lanes,
                                 typename Tiled<PIXELS, BLOCKS>::Values& t) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      const float* at = residual + m * k.channels_out + n * kLanes;
      t[m][n] = _mm512_add_ps(t[m][n], _mm512_maskz_loadu_ps(lanes[n], at));
    }
  }
}

// t = t > 0 ? t : slope * t
template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void Activate(const float* slopes, typename Tiled<PIXELS, BLOCKS>::Values& t) {
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const __m512 slope = _mm512_loadu_ps(slopes + n * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      const __mmask16 not_positive = _mm512_cmp_ps_mask(t[m][n], _mm512_setzero_ps(), _CMP_NGT_UQ);
      t[m][n] = _mm512_mask_mul_ps(t[m][n], not_positive, slope, t[m][n]);
    }
  }
}

template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void Shift(const float* shifts, typename Tiled<PIXELS, BLOCKS>::Values& t) {
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const __m512 shift = _mm512_loadu_ps(shifts + n * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m][n] = _mm512_add_ps(t[m][n], shift);
  }
}

template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void StoreFloats(const ConvConst& k, const typename Tiled<PIXELS, BLOCKS>::Lanes& lanes,
                                 const typename Tiled<PIXELS, BLOCKS>::Values& t, float* y) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) _mm512_mask_storeu_ps(y + m * k.channels_out + n * kLanes, lanes[n], t[m][n]);
  }
}

template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void StoreBits(const ConvConst& k, const float* thresholds,
                               const typename Tiled<PIXELS, BLOCKS>::Lanes& lanes,
                               const typename Tiled<PIXELS, BLOCKS>::Values& t, uint16_t* next) {
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const __m512 threshold = _mm512_loadu_ps(thresholds + n * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      next[m * k.words_out * 4 + n] = _mm512_mask_cmp_ps_mask(lanes[n], t[m][n], threshold, _CMP_GT_OQ);
    }
  }
}

template <int PIXELS, int BLOCKS>
BINARIZE_INLINE void Epilogue(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                              size_t column, const __m512i (&sums)[PIXELS][BLOCKS]) {
  __m512 t[PIXELS][BLOCKS];
  __mmask16 lanes[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) lanes[n] = FirstLanes(k.blocks[block + n].lanes);
  const size_t channel = block * kLanes;
  const size_t first = column * k.channels_out + channel;

  Scale<PIXELS, BLOCKS>(k, row, block, column, sums, t);
  if (row.link != nullptr) AddLink<PIXELS, BLOCKS>(k, call, row, block, column, lanes, t);
  if (row.residual != nullptr) AddResidual<PIXELS, BLOCKS>(k, row.residual + first, lanes, t);
  if (k.slope != nullptr) Activate<PIXELS, BLOCKS>(k.slope + channel, t);
  if (k.shift != nullptr) Shift<PIXELS, BLOCKS>(k.shift + channel, t);
  if (row.y != nullptr) StoreFloats<PIXELS, BLOCKS>(k, lanes, t, row.y + first);
  if (row.next_bits == nullptr) return;
  uint16_t* next = row.next_bits + column * k.words_out * 4 + block;
  StoreBits<PIXELS, BLOCKS>(k, k.next_threshold + channel, lanes, t, next);
}

// ---------------------------------------------------------------------------------------------- Conv

// Adds the mismatches of `words` consecutive uint32 words, of the map and of the interleaved weights.
template <int PIXELS, int BLOCKS, bool MASKED>
BINARIZE_INLINE void Accumulate(const uint32_t* bits, size_t pixel_step, const uint32_t* weights,
                                size_t block_step, const uint32_t* masks, size_t words,
                                __m512i (&sums)[PIXELS][BLOCKS]) {
  for (size_t i = 0; i < words; ++i) {
    __m512i w[BLOCKS];
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) w[n] = _mm512_loadu_si512(weights + n * block_step + i * kLanes);
    const __m512i mask = MASKED ? _mm512_loadu_si512(masks + i * kLanes) : _mm512_setzero_si512();
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(bits[m * pixel_step + i]));
      BINARIZE_UNROLL
      for (int n = 0; n < BLOCKS; ++n) {
        constexpr int kXorThenAnd = 0x28;  // (a ^ w) & mask
        const __m512i differ =
            MASKED ? _mm512_ternarylogic_epi32(a, w[n], mask, kXorThenAnd) : _mm512_xor_si512(a, w[n]);
        sums[m][n] = _mm512_add_epi32(sums[m][n], _mm512_popcnt_epi32(differ));
      }
    }
  }
}

template <int PIXELS, int BLOCKS, bool MASKED>
void Tile(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block, size_t column) {
  const Block& b = k.blocks[block];
  __m512i sums[PIXELS][BLOCKS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) sums[m][n] = _mm512_setzero_si512();
  }
  const size_t block_step = k.kernel_h * k.kernel_w * b.span * kLanes;
  const bool one_run = !MASKED && call.tap_step == b.span;  // a kernel row is one run of words
  const size_t runs = one_run ? 1 : k.kernel_w;
  const size_t words = one_run ? k.kernel_w * b.span : b.span;
  const uint32_t* map_row = row.bits + column * call.pixel_step + b.first;
  const uint32_t* weights = k.weights + b.weights + row.tap_begin * k.kernel_w * b.span * kLanes;
  for (size_t r = row.tap_begin; r < row.tap_end; ++r) {
    const uint32_t* bits = map_row;
    for (size_t run = 0; run < runs; ++run) {
      Accumulate<PIXELS, BLOCKS, MASKED>(bits, call.pixel_step, weights, block_step, k.masks + (MASKED ? b.masks : 0),
                                         words, sums);
      bits += call.tap_step;
      weights += words * kLanes;
    }
    map_row += call.row_step;
  }
  Epilogue<PIXELS, BLOCKS>(k, call, row, block, column, sums);
}

using TileFunction = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, size_t, size_t);

constexpr TileFunction kWideTiles[] = {nullptr,           Tile<1, 4, false>, Tile<2, 4, false>, Tile<3, 4, false>,
                                       Tile<4, 4, false>, Tile<5, 4, false>, Tile<6, 4, false>};
constexpr TileFunction kPairTiles[] = {nullptr,           Tile<1, 2, false>, Tile<2, 2, false>, Tile<3, 2, false>,
                                       Tile<4, 2, false>, Tile<5, 2, false>, Tile<6, 2, false>, Tile<7, 2, false>};
constexpr TileFunction kSingleTiles[] = {nullptr,           Tile<1, 1, false>, Tile<2, 1, false>, Tile<3, 1, false>,
                                         Tile<4, 1, false>, Tile<5, 1, false>, Tile<6, 1, false>, Tile<7, 1, false>};
constexpr TileFunction kMaskedTiles[] = {nullptr,          Tile<1, 1, true>, Tile<2, 1, true>, Tile<3, 1, true>,
                                         Tile<4, 1, true>, Tile<5, 1, true>, Tile<6, 1, true>, Tile<7, 1, true>};

struct Tiling {
  const TileFunction* tiles;  // by number of pixels
  size_t blocks, max_pixels;
};

Tiling ChooseTiling(const ConvConst& k, const Block& b, size_t pixels) {
  if (b.masks != kNoMask) return {kMaskedTiles, 1, kMaxPixels};
  const bool flat = k.kernel_h * k.kernel_w == 1;
  if (b.alike >= 4 && (flat || pixels % kMaxPixels != 0)) return {kWideTiles, 4, kMaxPixelsWide};
  if (b.alike >= 2) return {kPairTiles, 2, kMaxPixels};
  return {kSingleTiles, 1, kMaxPixels};
}

void Conv(const ConvConst& k, const ConvCall& call, const ConvRow* rows, size_t row_count) {
  for (size_t block = 0; block < k.block_count;) {
    const Tiling tiling = ChooseTiling(k, k.blocks[block], rows[0].end - rows[0].begin);
    for (const ConvRow* row = rows; row != rows + row_count; ++row) {
      const size_t pixels = row->end - row->begin;
      size_t left = (pixels + tiling.max_pixels - 1) / tiling.max_pixels;  // tiles of near-equal size
      for (size_t column = row->begin; column < row->end; --left) {
        const size_t size = (row->end - column + left - 1) / left;
        tiling.tiles[size](k, call, *row, block, column);
        column += size;
      }
    }
    block += tiling.blocks;
  }
}

// ---------------------------------------------------------------------------------------------- Depthwise

constexpr int kMaxPlanes = 29;  // kernels have at most 2^28 taps

// Adds one bit to each of 512 counters; plane p holds bit p of every counter.
template <int PLANES>
BINARIZE_INLINE void CountOne(__m512i (&plane)[PLANES], int from, __m512i carry) {
  BINARIZE_UNROLL
  for (int p = 0; p < PLANES; ++p) {
    if (p < from) continue;
    const __m512i sum = _mm512_xor_si512(plane[p], carry);
    carry = _mm512_and_si512(plane[p], carry);
    plane[p] = sum;
  }
}

// Adds two bits to each counter: a full adder, then one ripple for both.
template <int PLANES>
BINARIZE_INLINE void CountTwo(__m512i (&plane)[PLANES], __m512i a, __m512i b) {
  constexpr int kParity = 0x96, kMajority = 0xE8;
  const __m512i carry = _mm512_ternarylogic_epi64(plane[0], a, b, kMajority);
  plane[0] = _mm512_ternarylogic_epi64(plane[0], a, b, kParity);
  CountOne(plane, 1, carry);
}

// Mismatches of eight words of 64 channels (those of `words`): loads xor weights, counted over all taps.
template <int PLANES>
BINARIZE_INLINE void CountTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row, const uint32_t* bits,
                               size_t first_word, __mmask8 words, __m512i (&plane)[PLANES]) {
  BINARIZE_UNROLL
  for (int p = 0; p < PLANES; ++p) plane[p] = _mm512_setzero_si512();
  const uint64_t* weights = k.depthwise + row.tap_begin * k.kernel_w * k.depthwise_step + first_word;
  const auto differ = [words](const uint32_t* at, const uint64_t* weight) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi64(words, at), _mm512_loadu_si512(weight));
  };
  for (size_t r = row.tap_begin; r < row.tap_end; ++r, bits += call.row_step) {
    const uint32_t* tap = bits;
    size_t c = 0;
    for (; c + 2 <= k.kernel_w; c += 2, tap += 2 * call.tap_step, weights += 2 * k.depthwise_step) {
      CountTwo(plane, differ(tap, weights), differ(tap + call.tap_step, weights + k.depthwise_step));
    }
    if (c < k.kernel_w) {
      CountOne(plane, 0, differ(tap, weights));
      weights += k.depthwise_step;
    }
  }
}

// Counters of words of 64 channels: plane p of word i of chunk c is plane[c][p][i].
constexpr size_t kBufferChunks = 8, kBufferWords = 8 * kBufferChunks;
constexpr size_t kTilePixels = 4;  // x 4 blocks: the epilogue of a word
template <int PLANES>
struct Counters {
  alignas(64) uint64_t plane[kBufferChunks][PLANES][8];
};

// Counters of one word, spread from planes to bytes and from bytes to int32 lanes.
template <int PLANES, int BLOCKS>
BINARIZE_INLINE void SpreadWord(const Counters<PLANES>& counters, size_t position, __m512i (&sums)[BLOCKS]) {
  const auto& plane = counters.plane[position / 8];
  const size_t i = position % 8;
  __m512i bytes = _mm512_setzero_si512();
  BINARIZE_UNROLL
  for (int p = 0; p < (PLANES < 8 ? PLANES : 8); ++p) {
    bytes = _mm512_mask_add_epi8(bytes, plane[p][i], bytes, _mm512_set1_epi8(static_cast<char>(1 << p)));
  }
  sums[0] = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes));
  if constexpr (BLOCKS > 1) sums[1] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 1));
  if constexpr (BLOCKS > 2) sums[2] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 2));
  if constexpr (BLOCKS > 3) sums[3] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, 3));
  for (int p = 8; p < PLANES; ++p) {  // only kernels of 256 taps and more
    for (int n = 0; n < BLOCKS; ++n) {
      const __mmask16 bits = static_cast<__mmask16>(plane[p][i] >> (n * 16));
      sums[n] = _mm512_mask_add_epi32(sums[n], bits, sums[n], _mm512_set1_epi32(1 << p));
    }
  }
}

// The word of PIXELS neighbouring pixels whose counters are `step` positions apart.
template <int PLANES, int PIXELS, int BLOCKS>
BINARIZE_INLINE void FinishWord(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column,
                                size_t word, const Counters<PLANES>& counters, size_t position, size_t step) {
  __m512i sums[PIXELS][BLOCKS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) SpreadWord<PLANES, BLOCKS>(counters, position + m * step, sums[m]);
  Epilogue<PIXELS, BLOCKS>(k, call, row, word * 4, column, sums);
}

// Words [word, word + words) of `pixels` pixels from `column` on, and where their counters lie.
struct Group {
  size_t column, pixels, word, words;
  size_t step;   // counters from one pixel to the next
  bool one_run;  // all words of all pixels are neighbours in memory
};

template <int PLANES>
BINARIZE_INLINE void CountGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                Counters<PLANES>& counters) {
  const size_t runs = g.one_run ? 1 : g.pixels;
  const size_t length = g.one_run ? g.pixels * g.words : g.words;
  for (size_t run = 0; run < runs; ++run) {
    const uint32_t* bits = row.bits + (g.column + run) * call.pixel_step + 2 * g.word;
    for (size_t at = 0; at < length; at += 8) {
      const __mmask8 present = static_cast<__mmask8>((1u << Min(8, length - at)) - 1u);
      __m512i count[PLANES];
      CountTaps(k, call, row, bits + 2 * at, (g.word + at) % k.words_in, present, count);
      auto& plane = counters.plane[(run * g.step + at) / 8];
      BINARIZE_UNROLL
      for (int p = 0; p < PLANES; ++p) _mm512_store_si512(plane[p], count[p]);
    }
  }
}

template <int PLANES>
BINARIZE_INLINE void FinishGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                 const Counters<PLANES>& counters) {
  for (size_t i = 0; i < g.words; ++i) {
    const size_t word = g.word + i;
    const size_t blocks = Min(4, k.block_count - word * 4);
    size_t m = 0;
    for (; blocks == 4 && m + kTilePixels <= g.pixels; m += kTilePixels) {
      FinishWord<PLANES, kTilePixels, 4>(k, call, row, g.column + m, word, counters, m * g.step + i, g.step);
    }
    for (; m < g.pixels; ++m) {
      const size_t column = g.column + m, position = m * g.step + i;
      switch (blocks) {
        case 4: FinishWord<PLANES, 1, 4>(k, call, row, column, word, counters, position, 0); break;
        case 3: FinishWord<PLANES, 1, 3>(k, call, row, column, word, counters, position, 0); break;
        case 2: FinishWord<PLANES, 1, 2>(k, call, row, column, word, counters, position, 0); break;
        default: FinishWord<PLANES, 1, 1>(k, call, row, column, word, counters, position, 0); break;
      }
    }
  }
}

// Groups of pixels, as many as the buffer of counters holds: count all their words, then finish word by word in tiles
// of four pixels, so that the epilogue's parameters serve four. With stride 1 the words of neighbouring pixels are
// neighbours in memory, and a group is one run of words whose weights repeat. From 1025 channels on a group is a part
// of one pixel.
template <int PLANES>
void DepthwiseRow(const ConvConst& k, const ConvCall& call, const ConvRow& row) {
  const size_t words = k.words_in;
  Group g{};
  g.one_run = words * kTilePixels <= kBufferWords && call.pixel_step == 2 * words;
  g.step = g.one_run ? words : (words + 7) / 8 * 8;
  const bool several = g.step * kTilePixels <= kBufferWords;
  const size_t pixels = several ? kBufferWords / g.step / kTilePixels * kTilePixels : 1;
  Counters<PLANES> counters;
  for (g.column = row.begin; g.column < row.end; g.column += g.pixels) {
    g.pixels = Min(pixels, row.end - g.column);
    for (g.word = 0; g.word < words; g.word += g.words) {
      g.words = Min(kBufferWords, words - g.word);
      CountGroup<PLANES>(k, call, row, g, counters);
      FinishGroup<PLANES>(k, call, row, g, counters);
    }
  }
}

void Depthwise(const ConvConst& k, const ConvCall& call, const ConvRow* rows, size_t row_count) {
  const size_t taps = k.kernel_h * k.kernel_w;
  const auto kernel = taps < 16   ? DepthwiseRow<4>   // 3x3
                      : taps < 32 ? DepthwiseRow<5>   // 5x5
                      : taps < 64 ? DepthwiseRow<6>   // 7x7
                      : taps < 1024 ? DepthwiseRow<10>
                                    : DepthwiseRow<kMaxPlanes>;
  for (const ConvRow* row = rows; row != rows + row_count; ++row) kernel(k, call, *row);
}

}  // namespace

const Kernels kAvx512Kernels = {Pack, Conv, Depthwise};

}  // namespace binarize
