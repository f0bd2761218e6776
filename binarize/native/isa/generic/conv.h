// Direct convolution over words of 32 channels: tiles of PIXELS neighbouring pixels x BLOCKS blocks, whole sums in
// registers until the epilogue.
#pragma once

#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// What one tile has counted. Counters hold kCounterSteps steps, then their counts are taken from `sums`; where kCounterSteps
// is 0 they are the sums.
template <class V, int PIXELS, int BLOCKS>
struct Tally {
  typename V::Counter counters[PIXELS][BLOCKS];
  typename V::Ints sums[PIXELS][BLOCKS];
  size_t room;
};

template <class V, int PIXELS, int BLOCKS>
BINARIZE_INLINE void Clear(typename V::Counter (&counters)[PIXELS][BLOCKS]) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) counters[m][n] = V::ZeroCounter();
  }
}

// Takes the counts from the sums and clears the counters.
template <class V, int PIXELS, int BLOCKS>
BINARIZE_INLINE void Flush(Tally<V, PIXELS, BLOCKS>& tally) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) tally.sums[m][n] = V::SubInts(tally.sums[m][n], V::Counts(tally.counters[m][n]));
  }
  Clear<V>(tally.counters);
  tally.room = V::kCounterSteps;
}

// Sums start at `start`, by block.
template <class V, int PIXELS, int BLOCKS>
BINARIZE_INLINE void StartTally(const typename V::Ints (&start)[BLOCKS], Tally<V, PIXELS, BLOCKS>& tally) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      if constexpr (V::kCounterSteps == 0) {
        tally.counters[m][n] = start[n];
      } else {
        tally.sums[m][n] = start[n];
      }
    }
  }
  if constexpr (V::kCounterSteps != 0) Clear<V>(tally.counters);
  tally.room = V::kCounterSteps;
}

// One word of every pixel against one word of every block. AHEAD: fetches the weights of the next tile's blocks, which lie
// behind; weights wait in memory, as a network's maps have passed through the caches since they were used.
template <class V, int PIXELS, int BLOCKS, bool MASKED, bool AHEAD>
BINARIZE_INLINE void Step(const uint32_t* bits, size_t pixel_step, const uint32_t* weights, size_t block_step,
                          const uint32_t* masks, typename V::Counter (&counters)[PIXELS][BLOCKS]) {
  typename V::Ints w[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    w[n] = V::LoadInts(weights + n * block_step);
    if (AHEAD) Prefetch(weights + (BLOCKS + n) * block_step);
  }
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    const typename V::Ints a = V::Broadcast(bits + m * pixel_step);
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      const typename V::Ints differ = MASKED ? V::XorAnd(a, w[n], V::LoadInts(masks)) : V::Xor(a, w[n]);
      counters[m][n] = V::Count(counters[m][n], differ);
      V::Pin(counters[m][n]);  // else GCC computes all xors first and spills the counters
    }
  }
}

// The words [i, stop).
template <class V, int PIXELS, int BLOCKS, bool MASKED, bool AHEAD>
BINARIZE_INLINE void Steps(const uint32_t* bits, size_t pixel_step, const uint32_t* weights, size_t block_step,
                           const uint32_t* masks, size_t i, size_t stop,
                           typename V::Counter (&counters)[PIXELS][BLOCKS]) {
  for (; i < stop; ++i) {
    Step<V, PIXELS, BLOCKS, MASKED, AHEAD>(bits + i, pixel_step, weights + i * kLanes, block_step,
                                           masks + (MASKED ? i * kLanes : 0), counters);
  }
}

// `words` consecutive words of the map and of the interleaved weights; WORDS: their number where known early, else 0.
template <class V, int PIXELS, int BLOCKS, bool MASKED, int WORDS>
BINARIZE_INLINE void Accumulate(const uint32_t* bits, size_t pixel_step, const uint32_t* weights, size_t block_step,
                                const uint32_t* masks, size_t words, bool ahead,
                                Tally<V, PIXELS, BLOCKS>& tally) {
  if constexpr (WORDS != 0) {
    BINARIZE_UNROLL
    for (int i = 0; i < WORDS; ++i) {
      Step<V, PIXELS, BLOCKS, MASKED, false>(bits + i, pixel_step, weights + i * kLanes, block_step, masks, tally.counters);
    }
  } else {
    for (size_t i = 0; i < words;) {
      size_t stop = words;
      if constexpr (V::kCounterSteps != 0) {
        if (tally.room == 0) Flush(tally);
        stop = Min(words, i + tally.room);
        tally.room -= stop - i;
      }
      if (ahead) {
        Steps<V, PIXELS, BLOCKS, MASKED, true>(bits, pixel_step, weights, block_step, masks, i, stop, tally.counters);
      } else {
        Steps<V, PIXELS, BLOCKS, MASKED, false>(bits, pixel_step, weights, block_step, masks, i, stop, tally.counters);
      }
      i = stop;
    }
  }
}

// Accumulators of a tile, or half of them, for the input's plane `plane` and the weight's base `base`.
template <class V, int PIXELS, int BLOCKS, bool MASKED, int WORDS>
BINARIZE_INLINE void CountTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                               size_t column, size_t base, size_t plane, bool ahead,
                               typename V::Ints (&sums)[BLOCKS][PIXELS]) {
  const Block& b = k.blocks[base * k.block_count + block];
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k, row, column, base);
  const bool from_base = k.counts_once && tile.one_base;  // nearly always: counting down from there gives accumulators
  typename V::Ints start[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    start[n] = from_base ? V::LoadInts(tile.base[0] + (block + n) * kLanes) : V::ZeroInts();
  }
  Tally<V, PIXELS, BLOCKS> tally;
  StartTally<V>(start, tally);
  const size_t block_step = k.kernel_h * k.kernel_w * b.span * kLanes;
  const uint32_t* first = row.bits + column * call.pixel_step + b.first + plane * k.digits * call.plane_step;
  const uint32_t* first_weights = k.weights + b.weights + row.tap_begin * k.kernel_w * b.span * kLanes;
  const uint32_t* masks = MASKED ? k.masks + b.masks : nullptr;
  if constexpr (WORDS != 0) {
    Accumulate<V, PIXELS, BLOCKS, MASKED, WORDS>(first, call.pixel_step, first_weights, block_step, masks, WORDS, ahead,
                                                  tally);
  } else {
    const bool one_run = !MASKED && call.tap_step == b.span;  // a kernel row is one run of words
    const size_t runs = one_run ? 1 : k.kernel_w;
    const size_t words = one_run ? k.kernel_w * b.span : b.span;
    for (size_t digit = 0; digit < k.digits; ++digit) {
      const uint32_t* map_row = first + digit * call.plane_step;
      const uint32_t* weights = first_weights;
      for (size_t r = row.tap_begin; r < row.tap_end; ++r) {
        const uint32_t* bits = map_row;
        for (size_t run = 0; run < runs; ++run) {
          Accumulate<V, PIXELS, BLOCKS, MASKED, 0>(bits, call.pixel_step, weights, block_step, masks, words, ahead,
                                                  tally);
          bits += call.tap_step;
          weights += words * kLanes;
        }
        map_row += call.row_step;
      }
    }
  }

  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      if constexpr (V::kCounterSteps == 0) {
        sums[n][m] = tally.counters[m][n];
      } else {
        sums[n][m] = V::SubInts(tally.sums[m][n], V::Counts(tally.counters[m][n]));
      }
    }
  }
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    if (!from_base) AddBase<V>(k, tile, block + n, sums[n]);
  }
}

// The terms of a tile but the last, from the bias on, as float32.
template <class V, int PIXELS, int BLOCKS, bool MASKED>
__attribute__((noinline)) void SumTerms(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                        size_t column, float (&sums)[BLOCKS][PIXELS][kLanes]) {
  for (int n = 0; n < BLOCKS; ++n) {
    for (int m = 0; m < PIXELS; ++m) V::Store(sums[n][m], V::Load(k.bias + (block + n) * kLanes));
  }
  for (size_t term = 0; term + 1 < k.terms; ++term) {
    typename V::Ints accumulators[BLOCKS][PIXELS];
    CountTile<V, PIXELS, BLOCKS, MASKED, 0>(k, call, row, block, column, term / k.planes, term % k.planes, false,
                                            accumulators);
    for (int n = 0; n < BLOCKS; ++n) {
      typename V::Floats t[PIXELS];
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) t[m] = V::Load(sums[n][m]);
      AddTerm<V, PIXELS>(k, row, column, block + n, term, accumulators[n], t);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) V::Store(sums[n][m], t[m]);
    }
  }
}

template <class V, class E, int PIXELS, int BLOCKS, bool MASKED, bool FULL, int WORDS>
void ConvTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block, size_t column, bool ahead) {
  Link<E, PIXELS, BLOCKS> link;
  PrepareLink<V>(k, call, row, block, column, link);
  alignas(64) float sums[BLOCKS][PIXELS][kLanes];
  const bool several = k.terms > 1;
  if (several) SumTerms<V, PIXELS, BLOCKS, MASKED>(k, call, row, block, column, sums);
  typename V::Ints accumulators[BLOCKS][PIXELS];
  CountTile<V, PIXELS, BLOCKS, MASKED, WORDS>(k, call, row, block, column, k.bases - 1, k.planes - 1, ahead,
                                              accumulators);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const float* before = several ? sums[n][0] : nullptr;
    Finish<V, FULL>(k, row, column, link, block + n, n, accumulators[n], before, kLanes);
  }
}

using TileFunction = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, size_t block, size_t column,
                              bool ahead);

constexpr size_t kMostPixels = 7;

// Tiles of 1 to MOST pixels.
template <class V, class E, int MOST, int BLOCKS, bool MASKED, bool FULL>
struct Tiles {
  template <int PIXELS>
  static constexpr TileFunction Make() {
    return ConvTile<V, E, (PIXELS < MOST ? PIXELS : MOST), BLOCKS, MASKED, FULL, 0>;
  }
  static constexpr TileFunction kByPixels[kMostPixels + 1] = {nullptr,   Make<1>(), Make<2>(), Make<3>(),
                                                              Make<4>(), Make<5>(), Make<6>(), Make<7>()};
};

struct Choice {
  TileFunction tile;
  size_t blocks;
};

// The largest tile of `pixels` pixels that may start at `block` and ends before `last`.
template <class V, class E>
BINARIZE_INLINE Choice ChooseTile(const ConvConst& k, const ConvRow& row, size_t block, size_t last, size_t pixels) {
  constexpr int kPixels = V::kPixels, kWidePixels = V::kWidePixels, kWideBlocks = V::kWideBlocks;
  const Block& b = k.blocks[block];
  if (b.masks != kNoMask) {
    return b.lanes == kLanes ? Choice{Tiles<V, E, kPixels, 1, true, true>::kByPixels[pixels], 1}
                             : Choice{Tiles<V, E, kPixels, 1, true, false>::kByPixels[pixels], 1};
  }
  if (b.lanes < kLanes) return {Tiles<V, E, kPixels, 1, false, false>::kByPixels[pixels], 1};
  if constexpr (kWideBlocks > 1) {
    const size_t tail = k.blocks[block + b.alike - 1].lanes < kLanes ? 1 : 0;
    const size_t full = Min(b.alike - tail, last - block);
    if (full >= kWideBlocks && pixels <= kWidePixels) {
      const bool one_tap =
          k.kernel_w == 1 && row.tap_end - row.tap_begin == 1 && k.digits == 1 && pixels == kWidePixels;
      if (one_tap && b.span == 2) return {ConvTile<V, E, kWidePixels, kWideBlocks, false, true, 2>, kWideBlocks};
      if (one_tap && b.span == 4) return {ConvTile<V, E, kWidePixels, kWideBlocks, false, true, 4>, kWideBlocks};
      return {Tiles<V, E, kWidePixels, kWideBlocks, false, true>::kByPixels[pixels], kWideBlocks};
    }
    if (full >= 2) return {Tiles<V, E, kPixels, 2, false, true>::kByPixels[pixels], 2};
  }
  return {Tiles<V, E, kPixels, 1, false, true>::kByPixels[pixels], 1};
}

// Pixels of a tile: those of wide tiles where a row is long and flat, else those that divide rows of 7, 14, 28, 56.
template <class V>
BINARIZE_INLINE size_t MostPixels(const ConvConst& k, size_t block, size_t pixels) {
  const bool flat = k.kernel_h * k.kernel_w == 1;
  const bool wide = k.blocks[block].alike >= V::kWideBlocks && (flat || pixels % V::kPixels != 0);
  return wide ? V::kWidePixels : V::kPixels;
}

constexpr size_t kWeightBytes = 16 * 1024;  // half of an L1: weights that stay there while pixels pass

// One past the last of the blocks from `block` on whose weights fit kWeightBytes; at least one tile's.
template <class V>
BINARIZE_INLINE size_t EndOfBatch(const ConvConst& k, size_t block) {
  const size_t bytes = k.bases * k.kernel_h * k.kernel_w * k.blocks[block].span * kLanes * sizeof(uint32_t);
  const size_t fit = kWeightBytes / bytes / V::kWideBlocks * V::kWideBlocks;
  return Min(k.block_count, block + (fit == 0 ? V::kWideBlocks : fit));
}

// All blocks of [first, last) for one row, in tiles of near-equal size. `cold`: no row before it has used their weights.
template <class V, class E>
BINARIZE_INLINE void ConvBlocks(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t first,
                                size_t last, bool cold) {
  const size_t pixels = row.end - row.begin, most = MostPixels<V>(k, first, pixels);
  size_t left = (pixels + most - 1) / most;
  for (size_t column = row.begin; column < row.end; --left) {
    const size_t size = (row.end - column + left - 1) / left;
    for (size_t block = first; block < last;) {
      const Choice choice = ChooseTile<V, E>(k, row, block, last, size);
      choice.tile(k, call, row, block, column, cold && column == row.begin);
      block += choice.blocks;
    }
    column += size;
  }
}

template <class V, class E>
void ConvElements(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  for (size_t first = work.first_block, last; first < work.last_block; first = last) {
    last = Min(work.last_block, EndOfBatch<V>(k, first));
    for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
      ConvBlocks<V, E>(k, call, *row, first, last, row == work.rows);
    }
  }
}

template <class V>
void Conv(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  k.element == Element::kFloat16 ? ConvElements<V, Half>(k, call, work) : ConvElements<V, float>(k, call, work);
}

}  // namespace generic
}  // namespace binarize
