// The epilogue that nearly all tiles have, of many blocks whose counts lie in memory: where registers are few, or counts
// are read from there anyway. Nothing that is the same for all blocks is found anew for one of them; between two blocks
// that took as many instructions as their arithmetic.
//
// V: LoadCounts(p): sixteen uint16 or uint8 as Ints.
#pragma once

#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// What the blocks of a tile add of the link: sums of elements of its map, or what was summed before.
template <class E>
struct TileLink {
  const E* map;         // of the first pixel; null where nothing is read there
  size_t step;          // elements from pixel to pixel
  size_t terms;         // channels of a sum
  const float* values;  // [blocks][pixels][16]; null where nothing was summed
};

// Whether a row's epilogue is plain beside the link: one term, no factor per pixel, gentle slopes, one plane of bits.
BINARIZE_INLINE bool IsPlain(const ConvConst& k, const ConvRow& row) {
  const bool gentle = k.slope == nullptr || k.slope_is_gentle;
  return k.terms == 1 && row.factor == nullptr && gentle && k.next_planes == 1;
}

// How many of `blocks` blocks from `block` on are whole: all but perhaps the last.
BINARIZE_INLINE size_t WholeBlocks(const ConvConst& k, size_t block, size_t blocks) {
  return blocks - (k.blocks[block + blocks - 1].lanes < kLanes ? 1 : 0);
}

// Whether the blocks' channels lie in a link's map of the output's size as FinishPlain reads them.
BINARIZE_INLINE bool LieInMap(const Block* blocks, size_t count) {
  if (blocks[0].link_terms > 1) return AreAlikeRuns(blocks, count);
  for (size_t n = 0; n < count; ++n) {
    if (blocks[n].link_terms > 1 || !(blocks[n].link_is_run || blocks[n].link_wrap != 0)) return false;
  }
  return true;
}

// The link of `blocks` whole blocks at `pixels` pixels from `column` on where it is read in the map, else none.
template <class E>
BINARIZE_INLINE TileLink<E> FindMapLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                        size_t blocks, size_t column, size_t pixels) {
  TileLink<E> link{};
  if (row.link == nullptr || !LieInMap(k.blocks + block, blocks)) return link;
  Link<E, 1> found{};
  FindMap(call, row, column, pixels, found);
  link.map = found.map, link.step = found.step, link.terms = k.blocks[block].link_terms;
  return link;
}

// The same where it may be summed before, to `sums`.
template <class V, class E, int PIXELS>
BINARIZE_INLINE TileLink<E> FindTileLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                         size_t blocks, size_t column, float* sums) {
  TileLink<E> link = FindMapLink<E>(k, call, row, block, blocks, column, PIXELS);
  if (row.link == nullptr || link.map != nullptr) return link;
  LinkValues<V, E, PIXELS>(k, call, row, block, blocks, column, sums);
  link.values = sums;
  return link;
}

// The counts of a tile's blocks, and what they are subtracted from.
template <class C, int PIXELS>
struct TileCounts {
  const C* counts;  // of the block at hand
  size_t step;      // from pixel to pixel
  const int32_t* base[PIXELS];
  bool one_base;
};

// fma(accumulator, scale, bias) of pixel m at the lanes from `at` on; `from` is the base of pixel 0 there.
template <class V, class C, int PIXELS>
BINARIZE_INLINE typename V::Floats ScaleCounts(const TileCounts<C, PIXELS>& tile, int m, size_t at,
                                               typename V::Ints from, typename V::Floats scale,
                                               typename V::Floats bias) {
  if (BINARIZE_UNLIKELY(!tile.one_base)) from = V::LoadInts(tile.base[m] + at);
  return V::Fma(V::ToFloats(V::SubInts(from, V::LoadCounts(tile.counts + m * tile.step))), scale, bias);
}

// t = fma(gamma, link, t), for a link of single elements or of what was summed before.
template <class V, class E, int PIXELS>
BINARIZE_INLINE void AddTileLink(const TileLink<E>& link, const Block& block, const int32_t* first, const float* gamma,
                                 size_t at, typename V::Floats (&t)[PIXELS]) {
  const typename V::Floats weight = V::Load(gamma);
  if (link.map == nullptr) {
    const float* values = link.values + at * PIXELS;
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(weight, V::Load(values + m * kLanes), t[m]);
    return;
  }
  const E* run = link.map + first[0];
  if (BINARIZE_LIKELY(block.link_is_run)) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Fma(weight, V::Load(run + m * link.step), t[m]);
    return;
  }
  const size_t wrap = block.link_wrap;
  const E* rest = link.map + first[wrap];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    t[m] = V::Fma(weight, V::LoadTwo(run + m * link.step, wrap, rest + m * link.step, kLanes), t[m]);
  }
}

// t = sums of `terms` channels of the link's map.
template <class V, class E, int PIXELS>
BINARIZE_INLINE void SumTerms(const TileLink<E>& link, const E* run, size_t term_step,
                              typename V::Floats (&t)[PIXELS]) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) t[m] = V::Load(run + m * link.step);
  for (size_t term = 1; term < link.terms; ++term) {
    run += term_step;
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(t[m], V::Load(run + m * link.step));
  }
}

// The plain epilogue of `blocks` whole blocks of PIXELS pixels: `counts` are those of the first one, `step` apart from
// pixel to pixel, and follow each other from block to block.
template <class V, class E, class C, int PIXELS>
__attribute__((noinline)) void FinishPlain(const ConvConst& k, const ConvRow& row, size_t column,
                                           const Tile<PIXELS>& bases, const TileLink<E>& link_of_tile, size_t block,
                                           size_t blocks, const C* counts, size_t step) {
  using Floats = typename V::Floats;
  const size_t channel = block * kLanes, pixel_step = k.channels_out, bits_step = k.next_step;
  const size_t first = column * pixel_step + channel, term_step = k.link_step;
  const float *bias = k.bias + channel, *scale = row.scale + channel, *gamma = k.gamma, *slope = k.slope;
  const float *shift = k.shift, *threshold = k.next_threshold + channel;
  const int32_t* link_first = k.link_first + channel;
  const Block* own = k.blocks + block;
  const TileLink<E> link = link_of_tile;  // copies: stores might change them for all the compiler knows
  const E* residual = row.residual == nullptr ? nullptr : static_cast<const E*>(row.residual) + first;
  E* y = row.y == nullptr ? nullptr : static_cast<E*>(row.y) + first;
  uint16_t* bits = row.next_bits == nullptr ? nullptr : row.next_bits + column * bits_step + block;
  TileCounts<C, PIXELS> tile{counts, step, {}, bases.one_base};
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) tile.base[m] = bases.base[m] + channel;

  for (size_t at = 0, end = blocks * kLanes; at < end; at += kLanes, tile.counts += kLanes, ++own) {
    Floats t[PIXELS];
    if (link.map != nullptr && link.terms > 1) {  // before the accumulators: registers hold one of both
      SumTerms<V>(link, link.map + link_first[at], term_step, t);
      const typename V::Ints from = V::LoadInts(tile.base[0] + at);
      const Floats factor = V::Load(scale + at), start = V::Load(bias + at), weight = V::Load(gamma + channel + at);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        t[m] = V::Fma(weight, t[m], ScaleCounts<V>(tile, m, at, from, factor, start));
      }
    } else {
      const typename V::Ints from = V::LoadInts(tile.base[0] + at);
      const Floats factor = V::Load(scale + at), start = V::Load(bias + at);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[m] = ScaleCounts<V>(tile, m, at, from, factor, start);
      if (link.map != nullptr || link.values != nullptr) {
        AddTileLink<V>(link, *own, link_first + at, gamma + channel + at, at, t);
      }
    }
    if (residual != nullptr) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(t[m], V::Load(residual + at + m * pixel_step));
    }
    if (slope != nullptr) {
      const Floats below = V::Load(slope + channel + at);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[m] = V::Max(t[m], V::Mul(below, t[m]));
    }
    if (shift != nullptr) {
      const Floats last = V::Load(shift + channel + at);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[m] = V::Add(t[m], last);
    }
    if (y != nullptr) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) V::Store(y + at + m * pixel_step, t[m]);
    }
    if (bits != nullptr) {
      const Floats limit = V::Load(threshold + at);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) bits[m * bits_step] = static_cast<uint16_t>(V::Above(t[m], limit));
      ++bits;
    }
  }
}

}  // namespace generic
}  // namespace binarize
