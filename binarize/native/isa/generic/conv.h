// Direct convolution over words of 32 channels: tiles of PIXELS neighbouring pixels x BLOCKS blocks, whole sums in
// registers until the epilogue.
#pragma once

#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

constexpr size_t kMostPixels = 7;     // of a tile
constexpr size_t kStripTiles = 8;     // whose maps stay in an L1 while the blocks pass
constexpr size_t kSharedBlocks = 64;  // whose sums of the link are kept for the tiles of the same pixels

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

// What a step counts: ones of a function of 32 channels of the map, which are kWords words, one word of the weights and
// perhaps one of the masks.
template <class V, bool MASKED>
struct Signs {
  static constexpr bool kMasked = MASKED;
  static constexpr size_t kWords = 1;
  using Word = typename V::Ints;
  BINARIZE_INLINE Word Load(const uint32_t* map) { return V::Broadcast(map); }
  BINARIZE_INLINE typename V::Ints Differ(Word a, typename V::Ints w, const uint32_t* masks) {
    return MASKED ? V::XorAnd(a, w, V::LoadInts(masks)) : V::Xor(a, w);
  }
};

template <class V, bool MASKED>
struct Ternary {
  static constexpr bool kMasked = MASKED;
  static constexpr size_t kWords = 2;
  struct Word {
    typename V::Ints sign, nonzero;
  };
  BINARIZE_INLINE Word Load(const uint32_t* map) { return {V::Broadcast(map), V::Broadcast(map + 1)}; }
  BINARIZE_INLINE typename V::Ints Differ(Word a, typename V::Ints w, const uint32_t* masks) {
    const typename V::Ints differ = V::XorAnd(a.sign, w, a.nonzero);
    return MASKED ? V::And(differ, V::LoadInts(masks)) : differ;
  }
};

// The inputs of a lane's group that are not 0.
template <class V>
struct Nonzeros {
  static constexpr bool kMasked = true;
  static constexpr size_t kWords = 2;
  using Word = typename V::Ints;
  BINARIZE_INLINE Word Load(const uint32_t* map) { return V::Broadcast(map + 1); }
  BINARIZE_INLINE typename V::Ints Differ(Word a, typename V::Ints, const uint32_t* masks) {
    return V::And(a, V::LoadInts(masks));
  }
};

// One word of every pixel against one word of every block. AHEAD: asks for the weights of the next blocks, which lie
// behind these. At first use weights are far away: the rest of the network has passed through the caches since the last.
template <class V, class INPUT, int PIXELS, int BLOCKS, bool AHEAD>
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
    const typename INPUT::Word a = INPUT::Load(bits + m * pixel_step);
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      counters[m][n] = V::Count(counters[m][n], INPUT::Differ(a, w[n], masks));
      V::Pin(counters[m][n]);  // else GCC computes all xors first and spills the counters
    }
  }
}

// The words [i, stop) of a run.
template <class V, class INPUT, int PIXELS, int BLOCKS, bool AHEAD>
BINARIZE_INLINE void Steps(const uint32_t* bits, size_t pixel_step, const uint32_t* weights, size_t block_step,
                           const uint32_t* masks, size_t i, size_t stop,
                           typename V::Counter (&counters)[PIXELS][BLOCKS]) {
  for (; i < stop; ++i) {
    Step<V, INPUT, PIXELS, BLOCKS, AHEAD>(bits + i * INPUT::kWords, pixel_step, weights + i * kLanes, block_step,
                                          masks + (INPUT::kMasked ? i * kLanes : 0), counters);
  }
}

// `words` consecutive words of the map and of the interleaved weights.
template <class V, class INPUT, int PIXELS, int BLOCKS>
BINARIZE_INLINE void Accumulate(const uint32_t* bits, size_t pixel_step, const uint32_t* weights, size_t block_step,
                                const uint32_t* masks, size_t words, bool ahead, Tally<V, PIXELS, BLOCKS>& tally) {
  for (size_t i = 0; i < words;) {
    size_t stop = words;
    if constexpr (V::kCounterSteps != 0) {
      if (tally.room == 0) Flush(tally);
      stop = Min(words, i + tally.room);
      tally.room -= stop - i;
    }
    if (ahead) {
      Steps<V, INPUT, PIXELS, BLOCKS, true>(bits, pixel_step, weights, block_step, masks, i, stop, tally.counters);
    } else {
      Steps<V, INPUT, PIXELS, BLOCKS, false>(bits, pixel_step, weights, block_step, masks, i, stop, tally.counters);
    }
    i = stop;
  }
}

// Where the taps of a row's tiles lie: those of the kernel's rows inside the map, in runs of neighbouring words of the map
// and of the weights.
struct Taps {
  const uint32_t *bits, *weights, *masks;  // of the first run; bits of column 0
  size_t pixel_step, block_step;
  size_t words, runs;                      // of a run; runs
  size_t runs_of_row, step, row_step;      // from one run's bits to the next in a kernel row, and to that of the next row
};

// Of `block`, for the input's plane `plane` and the weight's base `base`.
template <class INPUT>
BINARIZE_INLINE Taps FindTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block, size_t base,
                              size_t plane) {
  const Block& b = k.blocks[base * k.block_count + block];
  const bool one_run = !INPUT::kMasked && call.tap_step == b.span * INPUT::kWords;  // a kernel row is one run of words
  Taps taps;
  taps.bits = row.bits + b.first * INPUT::kWords + plane * call.plane_step;
  taps.weights = k.weights + b.weights + row.tap_begin * k.kernel_w * b.span * kLanes;
  taps.masks = INPUT::kMasked ? k.masks + b.masks : nullptr;
  taps.pixel_step = call.pixel_step;
  taps.block_step = k.kernel_h * k.kernel_w * b.span * kLanes;
  taps.words = one_run ? k.kernel_w * b.span : b.span;
  taps.runs_of_row = one_run ? 1 : k.kernel_w;
  taps.runs = (row.tap_end - row.tap_begin) * taps.runs_of_row;
  taps.step = call.tap_step;
  taps.row_step = call.row_step - (taps.runs_of_row - 1) * call.tap_step;
  return taps;
}

template <class V, class INPUT, int PIXELS, int BLOCKS>
BINARIZE_INLINE void CountTaps(const Taps& taps, size_t column, bool ahead, Tally<V, PIXELS, BLOCKS>& tally) {
  const uint32_t *bits = taps.bits + column * taps.pixel_step, *weights = taps.weights;
  for (size_t run = 0, in_row = 0; run < taps.runs; ++run) {
    Accumulate<V, INPUT, PIXELS, BLOCKS>(bits, taps.pixel_step, weights, taps.block_step, taps.masks, taps.words, ahead,
                                         tally);
    weights += taps.words * kLanes;
    const bool last = ++in_row == taps.runs_of_row;
    bits += last ? taps.row_step : taps.step;
    in_row = last ? 0 : in_row;
  }
}

// `start` minus what INPUT counts in a tile. WORDS: their number where there is one tap and it is known early, else 0.
// `ahead`: see Step.
template <class V, class INPUT, int WORDS, int PIXELS, int BLOCKS>
BINARIZE_INLINE void CountDown(const Taps& taps, size_t column, bool ahead, const typename V::Ints (&start)[BLOCKS],
                               typename V::Ints (&sums)[BLOCKS][PIXELS]) {
  Tally<V, PIXELS, BLOCKS> tally;
  StartTally<V>(start, tally);
  if constexpr (WORDS != 0) {  // of the only tap
    const uint32_t* bits = taps.bits + column * taps.pixel_step;
    BINARIZE_UNROLL
    for (int i = 0; i < WORDS; ++i) {
      Step<V, INPUT, PIXELS, BLOCKS, false>(bits + i * INPUT::kWords, taps.pixel_step, taps.weights + i * kLanes,
                                            WORDS * kLanes, nullptr, tally.counters);
    }
  } else {
    CountTaps<V, INPUT, PIXELS, BLOCKS>(taps, column, ahead, tally);
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
}

// Accumulators of a tile of a ternary conv, as int32: nonzeros - 2 * mismatches. A function of its own: it would crowd
// the registers of the usual case.
template <class V, int PIXELS, int BLOCKS, bool MASKED, int WORDS>
__attribute__((noinline)) void CountTernaryTile(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                                size_t block, size_t column, size_t base, size_t plane, bool ahead,
                                                int32_t (&accumulators)[BLOCKS][PIXELS][kLanes]) {
  typename V::Ints zero[BLOCKS], sums[BLOCKS][PIXELS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) zero[n] = V::ZeroInts();
  CountDown<V, Ternary<V, MASKED>, WORDS>(FindTaps<Ternary<V, MASKED>>(k, call, row, block, base, plane), column, ahead,
                                          zero, sums);
  if constexpr (MASKED) {
    typename V::Ints nonzeros[BLOCKS][PIXELS];
    CountDown<V, Nonzeros<V>, 0>(FindTaps<Nonzeros<V>>(k, call, row, block, base, plane), column, false, zero, nonzeros);
    for (int n = 0; n < BLOCKS; ++n) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) sums[n][m] = V::SubInts(V::AddInts(sums[n][m], sums[n][m]), nonzeros[n][m]);
    }
  } else {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) AddNonzeros<V>(call, row, column, plane, sums[n]);
  }
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) V::StoreInts(accumulators[n][m], sums[n][m]);
  }
}

// Accumulators of a tile, or half of them, for the input's plane `plane` and the weight's base `base`. `taps` are those
// of the signs. WORDS, `ahead`: see CountDown.
template <class V, int PIXELS, int BLOCKS, bool MASKED, int WORDS>
BINARIZE_INLINE void CountTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Taps& taps,
                               size_t block, size_t column, size_t base, size_t plane, bool ahead,
                               typename V::Ints (&sums)[BLOCKS][PIXELS]) {
  if (BINARIZE_UNLIKELY(k.ternary)) {
    alignas(64) int32_t accumulators[BLOCKS][PIXELS][kLanes];
    CountTernaryTile<V, PIXELS, BLOCKS, MASKED, WORDS>(k, call, row, block, column, base, plane, ahead, accumulators);
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) sums[n][m] = V::LoadInts(accumulators[n][m]);
    }
    return;
  }
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k, row, column, base);
  const bool from_base = k.counts_once && tile.one_base;  // nearly always: counting down from there gives accumulators
  typename V::Ints start[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    start[n] = from_base ? V::LoadInts(tile.base[0] + (block + n) * kLanes) : V::ZeroInts();
  }
  CountDown<V, Signs<V, MASKED>, WORDS>(taps, column, ahead, start, sums);
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    if (BINARIZE_UNLIKELY(!from_base)) AddBase<V>(k, tile, block + n, sums[n]);
  }
}

// The terms of a tile: the sum of all but the last from the bias on, and the accumulators of the last.
template <int PIXELS, int BLOCKS>
struct Terms {
  alignas(64) float sums[BLOCKS][PIXELS][kLanes];
  alignas(64) int32_t accumulators[BLOCKS][PIXELS][kLanes];
};

template <class V, int PIXELS, int BLOCKS, bool MASKED>
__attribute__((noinline)) void CountTerms(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                          size_t column, Terms<PIXELS, BLOCKS>& terms) {
  for (int n = 0; n < BLOCKS; ++n) {
    for (int m = 0; m < PIXELS; ++m) V::Store(terms.sums[n][m], V::Load(k.bias + (block + n) * kLanes));
  }
  for (size_t term = 0; term < k.terms; ++term) {
    typename V::Ints accumulators[BLOCKS][PIXELS];
    const size_t base = term / k.planes, plane = term % k.planes;
    const Taps taps = FindTaps<Signs<V, MASKED>>(k, call, row, block, base, plane);
    CountTile<V, PIXELS, BLOCKS, MASKED, 0>(k, call, row, taps, block, column, base, plane, false, accumulators);
    for (int n = 0; n < BLOCKS; ++n) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) V::StoreInts(terms.accumulators[n][m], accumulators[n][m]);
    }
    if (term + 1 == k.terms) break;
    for (int n = 0; n < BLOCKS; ++n) {
      typename V::Ints own[PIXELS];
      typename V::Floats t[PIXELS];
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        own[m] = V::LoadInts(terms.accumulators[n][m]);
        t[m] = V::Load(terms.sums[n][m]);
      }
      AddTerm<V, PIXELS>(k, row, column, block + n, term, own, t);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) V::Store(terms.sums[n][m], t[m]);
    }
  }
}

// Tiles of a row, one beside the other.
struct Strip {
  size_t column;     // of the first pixel
  size_t tiles;
  bool cold;         // no pixels before these have used the weights; see Step
  bool shares_link;  // `values` has EL(link) of the blocks from first_block on: [tiles][shared_blocks][pixels][16]
  size_t first_block, shared_blocks;
  alignas(64) float values[kSharedBlocks * kMostPixels * kLanes];
};

// Whether several blocks add the same sums of the link, as those of a strided expanding conv do. (Where the link is single
// values, reading them again costs less than keeping them.)
BINARIZE_INLINE bool SharesLink(const ConvConst& k, const ConvCall& call, const ConvRow& row) {
  const bool sums = row.link != nullptr && call.link_stride > 1;
  return sums && k.link_period < k.block_count && k.link_period <= kSharedBlocks;
}

template <class V, class E, int PIXELS>
void SumSharedLink(const ConvConst& k, const ConvCall& call, const ConvRow& row, Strip& strip) {
  float* values = strip.values;
  for (size_t tile = 0; tile < strip.tiles; ++tile, values += strip.shared_blocks * PIXELS * kLanes) {
    LinkValues<V, E, PIXELS>(k, call, row, strip.first_block, strip.shared_blocks, strip.column + tile * PIXELS, values);
  }
}

template <class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void UseSharedLink(const ConvConst& k, const Strip& strip, size_t tile, size_t block,
                                   Link<E, BLOCKS>& link) {
  size_t own = (block - strip.first_block) % k.link_period;
  link.map = nullptr;
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    link.values[n] = strip.values + (tile * strip.shared_blocks + own) * PIXELS * kLanes;
    own = own + 1 == k.link_period ? 0 : own + 1;
  }
}

// Asks for the lines of y that a tile will write: stores into memory that no cache holds wait for it, and fill the store
// queue. A residual in its place is read by then.
template <class E, int PIXELS, int BLOCKS>
BINARIZE_INLINE void FetchOutput(const ConvConst& k, const ConvRow& row, size_t block, size_t column) {
  constexpr size_t kLine = 64, kBytes = BLOCKS * kLanes * sizeof(E);
  if (row.y == nullptr || row.y == row.residual) return;
  const E* first = static_cast<const E*>(row.y) + column * k.channels_out + block * kLanes;
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    const char* pixel = reinterpret_cast<const char*>(first + m * k.channels_out);
    BINARIZE_UNROLL
    for (size_t i = 0; i < kBytes; i += kLine) PrefetchToWrite(pixel + i);
  }
}

// One block of a tile of several terms. Functions of their own, as they would crowd the usual case.
template <class V, class E, int PIXELS, bool FULL>
__attribute__((noinline)) void FinishTerms(const ConvConst& k, const ConvRow& row, size_t column, size_t block,
                                           const Link<E, 1>& link, const int32_t* accumulators, const float* sums) {
  typename V::Ints own[1][PIXELS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) own[0][m] = V::LoadInts(accumulators + m * kLanes);
  Finish<V, FULL, 1>(k, row, column, link, block, 0, own, sums, kLanes);
}

template <class V, class E, int PIXELS, int BLOCKS, bool MASKED, bool FULL>
__attribute__((noinline)) void TermsTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column,
                                         size_t block, const Link<E, BLOCKS>& link) {
  Terms<PIXELS, BLOCKS> terms;
  CountTerms<V, PIXELS, BLOCKS, MASKED>(k, call, row, block, column, terms);
  for (int n = 0; n < BLOCKS; ++n) {
    const Link<E, 1> own = {link.map, link.step, {link.values[n]}};
    FinishTerms<V, E, PIXELS, FULL>(k, row, column, block + n, own, terms.accumulators[n][0], terms.sums[n][0]);
  }
}

// The tiles of a strip, for the blocks from `block` on. What does not change from tile to tile is found once: between two
// tiles a processor does as many instructions for that as it does for the counting of a short one.
template <class V, class E, int PIXELS, int BLOCKS, bool MASKED, bool FULL, int WORDS>
void ConvTiles(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Strip& strip, size_t block) {
  const Taps taps = FindTaps<Signs<V, MASKED>>(k, call, row, block, 0, 0);
  alignas(64) float link_sums[BLOCKS][PIXELS][kLanes];
  Link<E, BLOCKS> link;
  size_t column = strip.column;
  const bool in_map = FindMapOfAll<V>(k, call, row, block, column, strip.tiles * PIXELS, link);
  for (size_t tile = 0; tile < strip.tiles; ++tile, column += PIXELS) {
    if (BINARIZE_UNLIKELY(strip.shares_link)) {
      UseSharedLink<E, PIXELS>(k, strip, tile, block, link);
    } else if (!in_map) {
      PrepareLink<V>(k, call, row, block, column, link_sums, link);
    }
    FetchOutput<E, PIXELS, BLOCKS>(k, row, block, column);
    if (BINARIZE_UNLIKELY(k.terms > 1)) {
      TermsTile<V, E, PIXELS, BLOCKS, MASKED, FULL>(k, call, row, column, block, link);
    } else {
      const bool ahead = strip.cold && tile == 0;
      if (ahead) FetchParameters<BLOCKS>(k, row, column, block + BLOCKS);
      typename V::Ints accumulators[BLOCKS][PIXELS];
      CountTile<V, PIXELS, BLOCKS, MASKED, WORDS>(k, call, row, taps, block, column, 0, 0, ahead, accumulators);
      FinishBlocks<V, FULL>(k, row, column, link, block, accumulators);
    }
    if (in_map) link.map += PIXELS * link.step;
  }
}

// The same for rows that want bits alone.
template <class V, int PIXELS, int BLOCKS, bool MASKED, bool FULL, int WORDS>
void BitTiles(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Strip& strip, size_t block) {
  const Taps taps = FindTaps<Signs<V, MASKED>>(k, call, row, block, 0, 0);
  for (size_t tile = 0; tile < strip.tiles; ++tile) {
    const size_t column = strip.column + tile * PIXELS;
    typename V::Ints accumulators[BLOCKS][PIXELS];
    CountTile<V, PIXELS, BLOCKS, MASKED, WORDS>(k, call, row, taps, block, column, 0, 0, strip.cold && tile == 0,
                                                accumulators);
    WriteBitsOfSums<V, FULL>(k, row, column, block, accumulators);
  }
}

using TileFunction = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, const Strip&, size_t block);

template <class V, class E, int PIXELS, int BLOCKS, bool MASKED, bool FULL, int WORDS>
constexpr TileFunction TilesOf() {
  if constexpr (kHasStream<E>) {
    return ConvTiles<V, E, PIXELS, BLOCKS, MASKED, FULL, WORDS>;
  } else {
    return BitTiles<V, PIXELS, BLOCKS, MASKED, FULL, WORDS>;
  }
}

// Tiles of 1 to MOST pixels.
template <class V, class E, int MOST, int BLOCKS, bool MASKED, bool FULL>
struct Tiles {
  template <int PIXELS>
  static constexpr TileFunction Make() {
    return TilesOf<V, E, (PIXELS < MOST ? PIXELS : MOST), BLOCKS, MASKED, FULL, 0>();
  }
  static constexpr TileFunction kByPixels[kMostPixels + 1] = {nullptr,   Make<1>(), Make<2>(), Make<3>(),
                                                              Make<4>(), Make<5>(), Make<6>(), Make<7>()};
};

template <class V, class E>
struct SharedLinks {
  using Function = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, Strip&);
  template <int PIXELS>
  static constexpr Function kOf = SumSharedLink<V, E, PIXELS>;
  static constexpr Function kByPixels[kMostPixels + 1] = {nullptr, kOf<1>, kOf<2>, kOf<3>, kOf<4>, kOf<5>, kOf<6>, kOf<7>};
};

struct Choice {
  TileFunction tiles;
  size_t blocks;
};

// The largest tile of `pixels` pixels that may start at `block` and ends before `last`. DENSE: blocks may have no masks.
template <class V, class E, bool DENSE>
BINARIZE_INLINE Choice ChooseTile(const ConvConst& k, const ConvRow& row, size_t block, size_t last, size_t pixels) {
  constexpr int kPixels = V::kPixels, kWidePixels = V::kWidePixels, kWideBlocks = V::kWideBlocks;
  const Block& b = k.blocks[block];
  if (!DENSE || b.masks != kNoMask) {
    return b.lanes == kLanes ? Choice{Tiles<V, E, kPixels, 1, true, true>::kByPixels[pixels], 1}
                             : Choice{Tiles<V, E, kPixels, 1, true, false>::kByPixels[pixels], 1};
  }
  if constexpr (DENSE) {
    if (b.lanes < kLanes) return {Tiles<V, E, kPixels, 1, false, false>::kByPixels[pixels], 1};
    const size_t tail = k.blocks[block + b.alike - 1].lanes < kLanes ? 1 : 0;
    const size_t full = Min(b.alike - tail, last - block);
    if (full >= kWideBlocks && pixels <= kWidePixels) {
      const bool one_tap = k.kernel_h * k.kernel_w == 1 && row.tap_begin < row.tap_end && pixels == kWidePixels;
      if (one_tap && b.span == 2) return {TilesOf<V, E, kWidePixels, kWideBlocks, false, true, 2>(), kWideBlocks};
      if (one_tap && b.span == 4) return {TilesOf<V, E, kWidePixels, kWideBlocks, false, true, 4>(), kWideBlocks};
      return {Tiles<V, E, kWidePixels, kWideBlocks, false, true>::kByPixels[pixels], kWideBlocks};
    }
    if (full >= 2) return {Tiles<V, E, kPixels, 2, false, true>::kByPixels[pixels], 2};
    return {Tiles<V, E, kPixels, 1, false, true>::kByPixels[pixels], 1};
  }
}

// Pixels of a tile: those of wide tiles, but of the narrow ones where a row of them is a single tile (and its weights pass
// once).
template <class V>
BINARIZE_INLINE size_t MostPixels(const ConvConst& k, size_t block, size_t pixels) {
  const bool flat = k.kernel_h * k.kernel_w == 1;
  const bool wide = k.blocks[block].alike >= V::kWideBlocks && (flat || pixels > V::kPixels);
  return wide ? V::kWidePixels : V::kPixels;
}

constexpr size_t kWeightBytes = 16 * 1024;  // half of an L1: weights that stay there while pixels pass

// One past the last of the blocks from `block` on that see all pixels before the next blocks do: those whose weights fit
// kWeightBytes, at least one tile's; but all blocks where they share sums.
template <class V>
BINARIZE_INLINE size_t EndOfBatch(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block) {
  if (SharesLink(k, call, row)) return k.block_count;
  const size_t bytes = k.bases * k.kernel_h * k.kernel_w * k.blocks[block].span * kLanes * sizeof(uint32_t);
  const size_t fit = kWeightBytes / bytes / V::kWideBlocks * V::kWideBlocks;
  return Min(k.block_count, block + (fit == 0 ? V::kWideBlocks : fit));
}

// All blocks of [first, last) for one row, in tiles of near-equal size. `cold`: no row before it has used their weights.
// DENSE: see ChooseTile.
template <class V, class E, bool DENSE>
BINARIZE_INLINE void ConvBlocks(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t first,
                                size_t last, bool cold) {
  const size_t pixels = row.end - row.begin, most = MostPixels<V>(k, first, pixels);
  size_t left = (pixels + most - 1) / most;
  Strip strip;
  strip.shares_link = SharesLink(k, call, row);
  strip.first_block = first;
  strip.shared_blocks = Min(k.link_period, last - first);
  const size_t most_tiles = strip.shares_link ? Min(kStripTiles, kSharedBlocks / strip.shared_blocks) : kStripTiles;
  for (strip.column = row.begin; strip.column < row.end;) {
    const size_t size = (row.end - strip.column + left - 1) / left;
    const size_t alike = row.end - strip.column - (size - 1) * left;  // tiles of that size; the others have one pixel less
    strip.tiles = Min(alike, most_tiles);
    strip.cold = cold && strip.column == row.begin;
    if constexpr (kHasStream<E>) {
      if (strip.shares_link) SharedLinks<V, E>::kByPixels[size](k, call, row, strip);
    }
    for (size_t block = first; block < last;) {
      const Choice choice = ChooseTile<V, E, DENSE>(k, row, block, last, size);
      choice.tiles(k, call, row, strip, block);
      block += choice.blocks;
    }
    strip.column += strip.tiles * size;
    left -= strip.tiles;
  }
}

template <class V, class E>
void ConvElements(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  for (size_t first = work.first_block, last; first < work.last_block; first = last) {
    last = Min(work.last_block, EndOfBatch<V>(k, call, work.rows[0], first));
    for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
      ConvBlocks<V, E, true>(k, call, *row, first, last, row == work.rows);
    }
  }
}

template <class V>
void Conv(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  if (work.rows[0].only_bits) return ConvElements<V, NoStream>(k, call, work);
  k.element == Element::kFloat16 ? ConvElements<V, Half>(k, call, work) : ConvElements<V, float>(k, call, work);
}

}  // namespace generic
}  // namespace binarize
