// From the accumulators of one block of a few neighbouring pixels to y and the next bits: docs/ops.md, "Value".
//
// One block at a time, each stage over all its pixels: parameters are loaded once, an optional stage costs one branch,
// and stores of a block overlap with the arithmetic of the next.
#pragma once

#include "core/half.h"
#include "isa/generic/vector.h"

namespace binarize {
namespace generic {

// What accumulators of the pixel `column` count from, for the weight's base `base` and block 0.
BINARIZE_INLINE const int32_t* BaseOf(const ConvConst& k, const ConvRow& row, size_t column, size_t base) {
  const size_t border = row.column_class != nullptr ? row.column_class[column] : 0;
  return row.base + (border * k.bases + base) * k.block_count * kLanes;
}

// The pixels [column, column + PIXELS) of a row: what their blocks share.
template <int PIXELS>
struct Tile {
  const int32_t* base[PIXELS];  // of block 0
  bool one_base;                // true nearly always: only borders differ
};

// Of the weight's base `base`.
template <int PIXELS>
BINARIZE_INLINE Tile<PIXELS> MakeTile(const ConvConst& k, const ConvRow& row, size_t column, size_t base = 0) {
  Tile<PIXELS> tile;
  const uint32_t* border = row.column_class;
  tile.one_base = border == nullptr || border[column] == border[column + PIXELS - 1];  // equal classes are neighbours
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) tile.base[m] = BaseOf(k, row, column, base);
  if (BINARIZE_UNLIKELY(!tile.one_base)) {
    BINARIZE_UNROLL
    for (int m = 1; m < PIXELS; ++m) tile.base[m] = BaseOf(k, row, column + m, base);
  }
  return tile;
}

// From minus the mismatches of a block to its accumulators, or half of them; see ConvConst::counts_once.
template <class V, int PIXELS>
BINARIZE_INLINE void AddBase(const ConvConst& k, const Tile<PIXELS>& tile, size_t block,
                             typename V::Ints (&sums)[PIXELS]) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    const typename V::Ints base = V::LoadInts(tile.base[m] + block * kLanes);
    sums[m] = V::AddInts(base, k.counts_once ? sums[m] : V::AddInts(sums[m], sums[m]));
  }
}

// From minus the mismatches of a block to its accumulators, for plane `plane` of a ternary conv of one group.
template <class V, int PIXELS>
BINARIZE_INLINE void AddNonzeros(const ConvCall& call, const ConvRow& row, size_t column, size_t plane,
                                 typename V::Ints (&sums)[PIXELS]) {
  const int32_t* nonzeros = row.nonzeros + plane * call.nonzeros_step + column;
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    const typename V::Ints own = V::Broadcast(reinterpret_cast<const uint32_t*>(nonzeros + m));
    sums[m] = V::AddInts(own, V::AddInts(sums[m], sums[m]));
  }
}

// Asks for what the epilogue of BLOCKS blocks from `block` on reads, however many there are: at first use it is far away,
// as the weights are.
template <int BLOCKS>
BINARIZE_INLINE void FetchParameters(const ConvConst& k, const ConvRow& row, size_t column, size_t block) {
  const void* const arrays[] = {k.bias, row.scale, k.gamma, k.slope, k.shift, k.next_threshold,
                                k.ternary ? nullptr : BaseOf(k, row, column, 0)};
  for (const void* array : arrays) {
    if (array == nullptr) continue;
    const float* first = static_cast<const float*>(array) + block * kLanes;
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) Prefetch(first + n * kLanes);
  }
}

template <class V, bool FULL, class E>
BINARIZE_INLINE typename V::Floats Read(const E* p, size_t lanes) {
  if constexpr (FULL) return V::Load(p);
  return V::LoadFirst(p, lanes);
}

template <class V, bool FULL, class E>
BINARIZE_INLINE void Write(E* p, typename V::Floats x, size_t lanes) {
  if constexpr (FULL) return V::Store(p, x);
  V::StoreFirst(p, x, lanes);
}

// The bits of BLOCKS neighbouring blocks of PIXELS pixels, which are `step` blocks apart.
template <class V, bool FULL, int BLOCKS, int PIXELS>
BINARIZE_INLINE void WriteBits(uint16_t* bits, size_t step, const typename V::Floats (&t)[BLOCKS][PIXELS],
                               const float* thresholds, size_t lanes) {
  const unsigned valid = FULL ? 0xffffu : (1u << lanes) - 1u;
  BINARIZE_UNROLL
  for (int b = 0; b < BLOCKS; ++b) {
    const typename V::Floats threshold = V::Load(thresholds + b * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) bits[m * step + b] = static_cast<uint16_t>(V::Above(t[b][m], threshold) & valid);
  }
}

// The stream of rows that want nothing but bits and add nothing: their accumulators are compared. A type of its own, so
// that their tiles are functions of their own; in the usual ones a branch for them cost whole nets a fiftieth.
struct NoStream {};

template <class E>
constexpr bool kHasStream = true;
template <>
inline constexpr bool kHasStream<NoStream> = false;

// The bits of accumulators, see ConvConst::bit_limits.
template <class V, bool FULL, int BLOCKS, int PIXELS>
BINARIZE_INLINE void WriteBitsOfSums(const ConvConst& k, const ConvRow& row, size_t column, size_t block,
                                     const typename V::Ints (&accumulators)[BLOCKS][PIXELS]) {
  const unsigned valid = FULL ? 0xffffu : (1u << k.blocks[block].lanes) - 1u;
  const size_t step = k.next_step;
  uint16_t* bits = row.next_bits + column * step + block;
  const int32_t* limits = k.bit_limits + block * kLanes;
  for (size_t plane = 0; plane < k.next_planes; ++plane, bits += k.words_out * 4, limits += k.block_count * kLanes) {
    BINARIZE_UNROLL
    for (int b = 0; b < BLOCKS; ++b) {
      const typename V::Ints limit = V::LoadInts(limits + b * kLanes);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        bits[m * step + b] = static_cast<uint16_t>(V::Above(accumulators[b][m], limit) & valid);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------- Elastic Link

// The link channels of the lanes of a block at one pixel of the map, added to `sums`, channels ascending.
template <class V, class E>
BINARIZE_INLINE void AddLinkChannels(const ConvConst& k, size_t block, const E* pixel, float* sums) {
  const Block& b = k.blocks[block];
  const int32_t* channel = k.link_first + block * kLanes;
  if (b.link_is_run || b.link_more != 0) {
    typename V::Floats sum = V::Load(sums);
    const E* run = pixel + channel[0];
    const size_t of_all = b.link_is_run ? b.link_terms : b.link_terms - 1;
    for (size_t i = 0; i < of_all; ++i, run += k.link_step) sum = V::Add(sum, V::LoadFirst(run, b.lanes));
    V::Store(sums, sum);
    if (b.link_more != 0) V::StoreFirst(sums, V::Add(sum, V::LoadFirst(run, b.link_more)), b.link_more);
    return;
  }
  if (b.link_wrap != 0) {
    const E* rest = pixel + channel[b.link_wrap];
    return V::Store(sums, V::Add(V::Load(sums), V::LoadTwo(pixel + channel[0], b.link_wrap, rest, b.lanes)));
  }
  for (size_t lane = 0; lane < b.lanes; ++lane) {
    const int32_t terms = k.link_count[block * kLanes + lane];
    for (int32_t i = 0; i < terms; ++i) sums[lane] += Widen(pixel[channel[lane] + static_cast<size_t>(i) * k.link_step]);
  }
}

// The windows of the pixels [column, column + pixels), where all lie inside the map.
template <class E>
struct Windows {
  bool inside;
  size_t rows, columns;
  const E* first;  // first row and column of the first pixel's window
};

template <class E>
BINARIZE_INLINE Windows<E> FindWindows(const ConvCall& call, const ConvRow& row, size_t column, size_t pixels) {
  const int64_t left = static_cast<int64_t>(column) * call.link_stride + call.link_offset;
  const int64_t right = left + static_cast<int64_t>(pixels) * call.link_stride;
  Windows<E> w{};
  w.inside = left >= 0 && right <= static_cast<int64_t>(call.map_w) && row.link_row_begin < row.link_row_end;
  if (!w.inside) return w;
  w.rows = row.link_row_end - row.link_row_begin;
  w.columns = static_cast<size_t>(call.link_stride);
  const size_t first = row.link_row_begin * call.map_w + static_cast<size_t>(left);
  w.first = static_cast<const E*>(row.link) + first * call.link_channels;
  return w;
}

// Any windows and channels. values: [pixels][16]. A function of its own: it would crowd the registers of the usual case.
template <class V, class E>
__attribute__((noinline)) void AnyLinkValues(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                             size_t block, size_t column, size_t pixels, float* values) {
  const int64_t width = static_cast<int64_t>(call.map_w);
  for (size_t m = 0; m < pixels; ++m, values += kLanes) {
    const int64_t left = static_cast<int64_t>(column + m) * call.link_stride + call.link_offset;
    const int64_t right = left + call.link_stride;
    const size_t begin = static_cast<size_t>(left < 0 ? 0 : left);
    const size_t end = static_cast<size_t>(right < 0 ? 0 : (right > width ? width : right));
    V::Store(values, V::Set(-0.0f));  // the neutral element of addition
    size_t count = 0;
    for (size_t r = row.link_row_begin; r < row.link_row_end; ++r) {
      for (size_t c = begin; c < end; ++c, ++count) {
        const E* pixel = static_cast<const E*>(row.link) + (r * call.map_w + c) * call.link_channels;
        AddLinkChannels<V>(k, block, pixel, values);
      }
    }
    const float share = count == 0 ? 0.0f : 1.0f / static_cast<float>(count);
    V::Store(values, count == 0 ? V::Zero() : V::Mul(V::Load(values), V::Set(share)));
  }
}

// How the sum of a block goes through a map, in elements: channels of a sum, then columns, then rows.
struct LinkWalk {
  size_t terms, columns, rows;
  size_t term_step, column_step, row_step;
  size_t pixel_step;  // from one pixel's window to the next
};

// The windows of PIXELS pixels in COUNT blocks, inside the map, where the blocks' channels are runs that start at `first`:
// sums of plain loads. values: [COUNT][PIXELS][16].
template <class V, bool FULL, int COUNT, class E, int PIXELS>
BINARIZE_INLINE void SumWindows(const E* const (&first)[COUNT], const LinkWalk& walk, size_t lanes,
                                typename V::Floats share, float* values) {
  typename V::Floats sum[COUNT][PIXELS];
  BINARIZE_UNROLL
  for (int n = 0; n < COUNT; ++n) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) sum[n][m] = Read<V, FULL>(first[n] + m * walk.pixel_step, lanes);
  }
  for (size_t r = 0, i = 1; r < walk.rows; ++r) {
    for (size_t c = 0; c < walk.columns; ++c, i = 0) {
      size_t term = r * walk.row_step + c * walk.column_step + i * walk.term_step;
      for (; i < walk.terms; ++i, term += walk.term_step) {
        BINARIZE_UNROLL
        for (int n = 0; n < COUNT; ++n) {
          BINARIZE_UNROLL
          for (int m = 0; m < PIXELS; ++m) {
            sum[n][m] = V::Add(sum[n][m], Read<V, FULL>(first[n] + term + m * walk.pixel_step, lanes));
          }
        }
      }
    }
  }
  const bool mean = walk.rows * walk.columns > 1;
  BINARIZE_UNROLL
  for (int n = 0; n < COUNT; ++n) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      V::Store(values + (n * PIXELS + m) * kLanes, mean ? V::Mul(sum[n][m], share) : sum[n][m]);
    }
  }
}

// Whether `count` blocks from `blocks` on are all full runs of channels, sums of as many.
BINARIZE_INLINE bool AreAlikeRuns(const Block* blocks, size_t count) {
  for (size_t n = 0; n < count; ++n) {
    const bool run = blocks[n].link_is_run && blocks[n].lanes == kLanes;
    if (!run || blocks[n].link_terms != blocks[0].link_terms) return false;
  }
  return true;
}

// SumWindows of the blocks [block, last), of which the first is a run, as far as COUNT goes; returns of how many.
template <class V, int COUNT, class E, int PIXELS>
BINARIZE_INLINE size_t SumRuns(const ConvConst& k, const E* windows, const LinkWalk& walk, typename V::Floats share,
                               size_t block, size_t last, float* values) {
  const Block* b = k.blocks + block;
  if constexpr (COUNT > 1) {
    if (last - block < COUNT || !AreAlikeRuns(b, COUNT)) {
      return SumRuns<V, COUNT / 2, E, PIXELS>(k, windows, walk, share, block, last, values);
    }
  }
  const E* first[COUNT];
  BINARIZE_UNROLL
  for (int n = 0; n < COUNT; ++n) first[n] = windows + k.link_first[(block + n) * kLanes];
  if (COUNT > 1 || b->lanes == kLanes) {
    SumWindows<V, true, COUNT, E, PIXELS>(first, walk, kLanes, share, values);
  } else {
    SumWindows<V, false, COUNT, E, PIXELS>(first, walk, b->lanes, share, values);
  }
  return COUNT;
}

// EL(link) of `count` blocks of PIXELS pixels, summed before the convolution so that it does not crowd its registers.
// values: [count][PIXELS][16].
template <class V, class E, int PIXELS>
__attribute__((noinline)) void LinkValues(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                          size_t count, size_t column, float* values) {
  constexpr int kTogether =  // as many blocks as fill the registers: their loads do not wait for each other
      V::kLinkSums >= 4 * PIXELS ? 4 : V::kLinkSums >= 2 * PIXELS ? 2 : 1;
  const Windows<E> w = FindWindows<E>(call, row, column, PIXELS);
  const typename V::Floats share = V::Set(w.inside ? 1.0f / static_cast<float>(w.rows * w.columns) : 0.0f);
  LinkWalk walk{};
  walk.columns = w.columns, walk.rows = w.rows;
  walk.term_step = k.link_step, walk.column_step = call.link_channels;
  walk.row_step = call.map_w * call.link_channels, walk.pixel_step = w.columns * call.link_channels;
  for (const size_t last = block + count; block < last;) {
    size_t done = 1;
    if (w.inside && k.blocks[block].link_is_run) {
      walk.terms = k.blocks[block].link_terms;
      done = SumRuns<V, kTogether, E, PIXELS>(k, w.first, walk, share, block, last, values);
    } else {
      AnyLinkValues<V, E>(k, call, row, block, column, PIXELS, values);
    }
    block += done;
    values += done * PIXELS * kLanes;
  }
}

// Where the epilogue of a tile reads EL(link): in the map, or what was summed before.
template <class E, int BLOCKS>
struct Link {
  const E* map;  // the first pixel, when a value is one element of the map; blocks of other forms still have values
  size_t step;   // elements from pixel to pixel
  const float* values[BLOCKS];  // [pixels][16]
};

// Whether the epilogue adds the link of a block from the map itself, where that is of the output's size: its lanes are one
// or two runs of channels, and sums of several are formed there if they do not crowd the registers.
template <class V>
BINARIZE_INLINE bool ReadsMap(const Block& b) {
  return b.link_is_run ? b.link_terms == 1 || V::kSumsInEpilogue : b.link_wrap != 0;
}

// Finds the map under `pixels` pixels from `column` on; `map` stays null where it is of another size or ends.
template <class E, int BLOCKS>
BINARIZE_INLINE void FindMap(const ConvCall& call, const ConvRow& row, size_t column, size_t pixels,
                             Link<E, BLOCKS>& link) {
  link.map = nullptr;
  if (row.link == nullptr || call.link_stride != 1) return;
  const Windows<E> w = FindWindows<E>(call, row, column, pixels);
  if (!w.inside || w.rows != 1) return;
  link.map = w.first;
  link.step = call.link_channels;
}

// Finds the map under `pixels` pixels if all blocks of a tile read what they add there.
template <class V, class E, int BLOCKS>
BINARIZE_INLINE bool FindMapOfAll(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                  size_t column, size_t pixels, Link<E, BLOCKS>& link) {
  FindMap(call, row, column, pixels, link);
  bool all = link.map != nullptr;
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) all = all && ReadsMap<V>(k.blocks[block + n]);
  return all;
}

// The link of one tile; `sums` is for what it does not read in the map.
template <class V, class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void PrepareLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                 size_t column, float (&sums)[BLOCKS][PIXELS][kLanes], Link<E, BLOCKS>& link) {
  link.map = nullptr;
  if (row.link == nullptr) return;
  if (ReadsMap<V>(k.blocks[block])) FindMap(call, row, column, PIXELS, link);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) link.values[n] = sums[n][0];
  if (link.map == nullptr) return LinkValues<V, E, PIXELS>(k, call, row, block, BLOCKS, column, sums[0][0]);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    if (!ReadsMap<V>(k.blocks[block + n])) LinkValues<V, E, PIXELS>(k, call, row, block + n, 1, column, sums[n][0]);
  }
}

// ---------------------------------------------------------------------------------------------- Stages

// The channels of a block that is a run, at the tile's pixels: single ones, or sums of several in ascending order.
template <class V, bool FULL, class E, int PIXELS>
BINARIZE_INLINE void ReadRun(const ConvConst& k, const E* channels, size_t step, const Block& b,
                             typename V::Floats (&values)[PIXELS]) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) values[m] = Read<V, FULL>(channels + m * step, b.lanes);
  if constexpr (V::kSumsInEpilogue) {
    for (size_t i = 1; i < b.link_terms; ++i) {
      channels += k.link_step;
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) values[m] = V::Add(values[m], Read<V, FULL>(channels + m * step, b.lanes));
    }
  }
}

// t = fma(gamma, EL(link), t) for block n of the tile
template <class V, bool FULL, class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void AddLink(const ConvConst& k, const Link<E, BLOCKS>& link, size_t block, int n,
                             typename V::Floats (&t)[PIXELS]) {
  const typename V::Floats gamma = V::Load(k.gamma + block * kLanes);
  const Block& b = k.blocks[block];
  const int32_t* channel = k.link_first + block * kLanes;
  if (BINARIZE_LIKELY(link.map != nullptr && b.link_is_run && ReadsMap<V>(b))) {
    typename V::Floats values[PIXELS];
    ReadRun<V, FULL>(k, link.map + channel[0], link.step, b, values);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(gamma, values[m], t[m]);
  } else if (link.map != nullptr && b.link_wrap != 0) {
    const E *low = link.map + channel[0], *high = link.map + channel[b.link_wrap];
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      t[m] = V::Fma(gamma, V::LoadTwo(low + m * link.step, b.link_wrap, high + m * link.step, b.lanes), t[m]);
    }
  } else {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(gamma, V::Load(link.values[n] + m * kLanes), t[m]);
  }
}

// t = t > 0 ? t : slope * t
template <class V, int PIXELS>
BINARIZE_INLINE void Activate(const ConvConst& k, size_t block, typename V::Floats (&t)[PIXELS]) {
  const typename V::Floats slope = V::Load(k.slope + block * kLanes);
  if (BINARIZE_LIKELY(k.slope_is_gentle)) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Max(t[m], V::Mul(slope, t[m]));
  } else {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Leak(t[m], slope);
  }
}

// t = fma(accumulator * factor, scale, t) for one block of term `term`.
template <class V, int PIXELS>
BINARIZE_INLINE void AddTerm(const ConvConst& k, const ConvRow& row, size_t column, size_t block, size_t term,
                             const typename V::Ints (&accumulators)[PIXELS], typename V::Floats (&t)[PIXELS]) {
  using Floats = typename V::Floats;
  const Floats scale = V::Load(row.scale + (term * k.block_count + block) * kLanes);
  if (BINARIZE_LIKELY(row.factor == nullptr)) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(V::ToFloats(accumulators[m]), scale, t[m]);
  } else {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      const Floats factor = V::Set(row.factor[column + m]);
      t[m] = V::Fma(V::Mul(V::ToFloats(accumulators[m]), factor), scale, t[m]);
    }
  }
}

// TOGETHER blocks of a tile that starts at `column`, from its block n on, which is `block` of the conv: `accumulators` are
// those of the last term, `sums` [PIXELS] the terms before, each `sums_step` floats from the next, or null if there is one
// (several terms go block by block). FULL: the blocks have all 16 lanes.
//
// A value goes through a chain of some ten dependent operations, and a processor looks ahead no further than about a
// block's: two blocks together fill the waits of one.
template <class V, bool FULL, int TOGETHER, class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void Finish(const ConvConst& k, const ConvRow& row, size_t column, const Link<E, BLOCKS>& link,
                            size_t block, int n, const typename V::Ints (*accumulators)[PIXELS],
                            const float* sums = nullptr, size_t sums_step = 0) {
  using Floats = typename V::Floats;
  const size_t channel = block * kLanes;
  const size_t lanes = k.blocks[block].lanes;
  const size_t pixel_step = k.channels_out;  // a copy, as stores might change `k` for all the compiler knows
  const size_t first = column * pixel_step + channel;
  Floats t[TOGETHER][PIXELS];
  BINARIZE_UNROLL
  for (int b = 0; b < TOGETHER; ++b) {
    if (sums != nullptr) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[b][m] = V::Load(sums + m * sums_step);
    } else {
      const Floats bias = V::Load(k.bias + channel + b * kLanes);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[b][m] = bias;
    }
    AddTerm<V, PIXELS>(k, row, column, block + b, sums != nullptr ? k.terms - 1 : 0, accumulators[b], t[b]);
  }
  if (row.link != nullptr) {
    BINARIZE_UNROLL
    for (int b = 0; b < TOGETHER; ++b) AddLink<V, FULL>(k, link, block + b, n + b, t[b]);
  }
  if (row.residual != nullptr) {
    const E* residual = static_cast<const E*>(row.residual) + first;
    BINARIZE_UNROLL
    for (int b = 0; b < TOGETHER; ++b) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        t[b][m] = V::Add(t[b][m], Read<V, FULL>(residual + m * pixel_step + b * kLanes, lanes));
      }
    }
  }
  if (k.slope != nullptr) {
    BINARIZE_UNROLL
    for (int b = 0; b < TOGETHER; ++b) Activate<V, PIXELS>(k, block + b, t[b]);
  }
  if (k.shift != nullptr) {
    BINARIZE_UNROLL
    for (int b = 0; b < TOGETHER; ++b) {
      const Floats shift = V::Load(k.shift + channel + b * kLanes);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[b][m] = V::Add(t[b][m], shift);
    }
  }
  if (row.y != nullptr) {
    E* y = static_cast<E*>(row.y) + first;
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      BINARIZE_UNROLL
      for (int b = 0; b < TOGETHER; ++b) Write<V, FULL>(y + m * pixel_step + b * kLanes, t[b][m], lanes);
    }
  }
  if (row.next_bits != nullptr) {
    const size_t step = k.next_step;
    uint16_t* next = row.next_bits + column * step + block;
    const float* threshold = k.next_threshold + channel;
    WriteBits<V, FULL>(next, step, t, threshold, lanes);  // not in the loop: that cost nets of one plane a fiftieth
    for (size_t plane = 1; BINARIZE_UNLIKELY(plane < k.next_planes); ++plane) {
      next += k.words_out * 4;
      threshold += k.block_count * kLanes;
      WriteBits<V, FULL>(next, step, t, threshold, lanes);
    }
  }
}

// All BLOCKS blocks of a tile, of one term.
template <class V, bool FULL, class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void FinishBlocks(const ConvConst& k, const ConvRow& row, size_t column, const Link<E, BLOCKS>& link,
                                  size_t block, const typename V::Ints (&accumulators)[BLOCKS][PIXELS]) {
  constexpr int kTogether = BLOCKS % 2 == 0 ? 2 : 1;
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; n += kTogether) {
    Finish<V, FULL, kTogether>(k, row, column, link, block + n, n, accumulators + n);
  }
}

}  // namespace generic
}  // namespace binarize
