// Depthwise convolution by bit-sliced counters: a register holds one bit plane of the counters of all its channels, and
// carry-save adders count the mismatches of whole words, tap by tap.
//
// V::Words is a register of V::kWords uint64: ZeroWords(), LoadWords(p), LoadFirstWords(p, n) without touching memory
// past n, StoreWords, XorWords, AndWords, Parity(a, b, c), Majority(a, b, c).
// V::Spread<PLANES>(planes, step, doubled): twice the counters of the 64 channels of one word, as bytes; plane p of the
// word is planes[p * step], and PLANES <= kBytePlanes.
#pragma once

#include "isa/generic/plain_epilogue.h"

namespace binarize {
namespace generic {

constexpr int kBytePlanes = 7;   // twice such a counter fits a byte
constexpr int kMostPlanes = 29;  // kernels have at most 2^28 taps

// Adds one bit to each counter, from plane `from` on.
template <class V, int PLANES>
BINARIZE_INLINE void CountOne(typename V::Words (&plane)[PLANES], int from, typename V::Words carry) {
  BINARIZE_UNROLL
  for (int p = 0; p < PLANES; ++p) {
    if (p < from) continue;
    const typename V::Words sum = V::XorWords(plane[p], carry);
    carry = V::AndWords(plane[p], carry);
    plane[p] = sum;
  }
}

// Adds two bits to each counter: a full adder, then one ripple for both.
template <class V, int PLANES>
BINARIZE_INLINE void CountTwo(typename V::Words (&plane)[PLANES], typename V::Words a, typename V::Words b) {
  const typename V::Words carry = V::Majority(plane[0], a, b);
  plane[0] = V::Parity(plane[0], a, b);
  CountOne<V>(plane, 1, carry);
}

// Mismatches of the first `present` words from `bits` on with the words of a base from `weights` on: loads xor weights,
// counted over all taps.
template <class V, int PLANES>
BINARIZE_INLINE void CountTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row, const uint32_t* bits,
                               const uint64_t* weights, size_t present, typename V::Words (&plane)[PLANES]) {
  BINARIZE_UNROLL
  for (int p = 0; p < PLANES; ++p) plane[p] = V::ZeroWords();
  weights += row.tap_begin * k.kernel_w * k.depthwise_step;
  const auto differ = [present](const uint32_t* at, const uint64_t* weight) {
    return V::XorWords(V::LoadFirstWords(at, present), V::LoadWords(weight));
  };
  for (size_t r = row.tap_begin; r < row.tap_end; ++r, bits += call.row_step) {
    const uint32_t* tap = bits;
    size_t c = 0;
    for (; c + 2 <= k.kernel_w; c += 2, tap += 2 * call.tap_step, weights += 2 * k.depthwise_step) {
      CountTwo<V>(plane, differ(tap, weights), differ(tap + call.tap_step, weights + k.depthwise_step));
    }
    if (c < k.kernel_w) {
      CountOne<V>(plane, 0, differ(tap, weights));
      weights += k.depthwise_step;
    }
  }
}

// Words [word, word + words) of `pixels` pixels from `column` on. Word i of pixel m has position m * step + i.
struct Group {
  size_t column, pixels, word, words;
  size_t step;
  bool one_run;  // all words of all pixels are neighbours in memory
};

// What a term counts: a plane of the input's bits, and a base of the weight.
struct Term {
  const uint32_t* bits;
  const uint64_t* weights;
};

BINARIZE_INLINE Term FindTerm(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t term) {
  const size_t base = term / k.planes, plane = term % k.planes;
  return {row.bits + plane * call.plane_step, k.depthwise + base * k.kernel_h * k.kernel_w * k.depthwise_step};
}

constexpr size_t kGroupWords = 64;  // positions of a group
constexpr size_t kWordChannels = 64;
constexpr int kTilePixels = 4;

// Twice the mismatches of a group's channels, by position: a byte of what kBytePlanes planes hold, and what kernels of
// 128 taps and more have above that.
struct Mismatches {
  alignas(64) uint8_t doubled[kGroupWords][kWordChannels];
  bool has_above;
  alignas(64) uint32_t above[kGroupWords][kWordChannels];
};

// Counters of words of 64 channels: plane p of the word at position i is in chunk i / kWords.
template <class V, int PLANES>
struct Counters {
  alignas(64) uint64_t plane[kGroupWords / V::kWords][PLANES][V::kWords];
};

template <class V, int PLANES>
BINARIZE_INLINE void SpreadWord(const Counters<V, PLANES>& counters, size_t position, Mismatches& mismatches) {
  const uint64_t* planes = &counters.plane[position / V::kWords][0][position % V::kWords];
  V::template Spread<(PLANES < kBytePlanes ? PLANES : kBytePlanes)>(planes, V::kWords, mismatches.doubled[position]);
  if constexpr (PLANES > kBytePlanes) {
    for (size_t channel = 0; channel < kWordChannels; ++channel) {
      uint32_t above = 0;
      for (int p = kBytePlanes; p < PLANES; ++p) above += ((planes[p * V::kWords] >> channel) & 1) << (p + 1);
      mismatches.above[position][channel] = above;
    }
  }
}

template <class V, int PLANES>
__attribute__((noinline)) void CountGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                          const Term& term, const Group& g, Mismatches& mismatches) {
  Counters<V, PLANES> counters;
  const size_t runs = g.one_run ? 1 : g.pixels;
  const size_t length = g.one_run ? (g.pixels - 1) * g.step + g.words : g.words;
  for (size_t run = 0; run < runs; ++run) {
    const uint32_t* bits = term.bits + (g.column + run) * call.pixel_step + 2 * g.word;
    for (size_t at = 0; at < length; at += V::kWords) {
      typename V::Words count[PLANES];
      const uint64_t* weights = term.weights + (g.word + at) % k.words_in;
      CountTaps<V>(k, call, row, bits + 2 * at, weights, Min(V::kWords, length - at), count);
      auto& plane = counters.plane[(run * g.step + at) / V::kWords];
      BINARIZE_UNROLL
      for (int p = 0; p < PLANES; ++p) V::StoreWords(plane[p], count[p]);
    }
  }
  mismatches.has_above = PLANES > kBytePlanes;
  for (size_t m = 0; m < g.pixels; ++m) {
    for (size_t i = 0; i < g.words; ++i) SpreadWord<V, PLANES>(counters, m * g.step + i, mismatches);
  }
}

// The accumulators of BLOCKS blocks of a word, from its block `first` on, which is `block` of the conv, at the PIXELS
// pixels of a tile; the first one's word has the position `position`.
template <class V, int BLOCKS, int PIXELS>
BINARIZE_INLINE void Subtract(const Mismatches& mismatches, const Tile<PIXELS>& tile, const Group& g, size_t position,
                              size_t first, size_t block, typename V::Ints (&accumulators)[BLOCKS][PIXELS]) {
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    const size_t lane = (first + n) * kLanes;
    const typename V::Ints base = V::LoadInts(tile.base[0] + (block + n) * kLanes);
    BINARIZE_UNROLL
    for (int i = 0; i < PIXELS; ++i) {
      const typename V::Ints own = tile.one_base ? base : V::LoadInts(tile.base[i] + (block + n) * kLanes);
      const typename V::Ints doubled = V::LoadBytes(mismatches.doubled[position + i * g.step] + lane);
      accumulators[n][i] = V::SubInts(own, doubled);
    }
    if (BINARIZE_UNLIKELY(mismatches.has_above)) {
      BINARIZE_UNROLL
      for (int i = 0; i < PIXELS; ++i) {
        const typename V::Ints above = V::LoadInts(mismatches.above[position + i * g.step] + lane);
        accumulators[n][i] = V::SubInts(accumulators[n][i], above);
      }
    }
  }
}

// BLOCKS blocks of a word, from its block `first` on, which is `block` of the conv: all of 16 lanes if FULL. Their link is
// in the map at `link`, if `in_map`, and moves on with the pixels.
template <class E, int BLOCKS>
struct WordBlocks {
  size_t block, first, word;  // the word's number in the group
  bool in_map;
  Link<E, BLOCKS> link;
};

// The pixels [m, m + PIXELS) of a group.
template <class V, bool FULL, int PIXELS, class E, int BLOCKS>
BINARIZE_INLINE void FinishTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g, size_t m,
                                const Mismatches& mismatches, WordBlocks<E, BLOCKS>& w) {
  const size_t column = g.column + m, position = m * g.step + w.word;
  alignas(64) float link_sums[BLOCKS][PIXELS][kLanes];
  if (!w.in_map) PrepareLink<V>(k, call, row, w.block, column, link_sums, w.link);
  typename V::Ints accumulators[BLOCKS][PIXELS];
  Subtract<V>(mismatches, MakeTile<PIXELS>(k, row, column), g, position, w.first, w.block, accumulators);
  FinishBlocks<V, FULL>(k, row, column, w.link, w.block, accumulators);
  if (w.in_map) w.link.map += PIXELS * w.link.step;
}

// BLOCKS blocks of the group's word i, from the word's block `first` on, at all pixels of the group. The link is found
// once, as by ConvTiles.
template <class V, class E, int BLOCKS, bool FULL>
BINARIZE_INLINE void FinishBlocksOfWord(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                        size_t i, size_t first, const Mismatches& mismatches) {
  WordBlocks<E, BLOCKS> w;
  w.block = (g.word + i) * 4 + first, w.first = first, w.word = i;
  w.in_map = FindMapOfAll<V>(k, call, row, w.block, g.column, g.pixels, w.link);
  size_t m = 0;
  for (; m + kTilePixels <= g.pixels; m += kTilePixels) {
    FinishTile<V, FULL, kTilePixels>(k, call, row, g, m, mismatches, w);
  }
  for (; m < g.pixels; ++m) FinishTile<V, FULL, 1>(k, call, row, g, m, mismatches, w);
}

// `blocks` whole blocks of the group, from its first on, at all pixels.
template <class V, class E>
BINARIZE_INLINE void FinishPlainBlocks(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                       size_t blocks, const Mismatches& mismatches) {
  constexpr size_t kMost = 16;  // whose sums of the link stay in an L1
  alignas(64) float link_sums[kMost * kTilePixels * kLanes];
  const size_t step = g.step * kWordChannels;
  for (size_t m = 0, pixels; m < g.pixels; m += pixels) {
    pixels = m + kTilePixels <= g.pixels ? kTilePixels : 1;
    const size_t column = g.column + m;
    for (size_t done = 0, now; done < blocks; done += now) {
      now = Min(kMost, blocks - done);
      const size_t block = g.word * 4 + done;
      const uint8_t* counts = mismatches.doubled[m * g.step] + done * kLanes;
      if (pixels == kTilePixels) {
        const Tile<kTilePixels> tile = MakeTile<kTilePixels>(k, row, column);
        const auto link = FindTileLink<V, E, kTilePixels>(k, call, row, block, now, column, link_sums);
        FinishPlain<V>(k, row, column, tile, link, block, now, counts, step);
      } else {
        const Tile<1> tile = MakeTile<1>(k, row, column);
        const auto link = FindTileLink<V, E, 1>(k, call, row, block, now, column, link_sums);
        FinishPlain<V>(k, row, column, tile, link, block, now, counts, step);
      }
    }
  }
}

template <class V, class E>
BINARIZE_INLINE void FinishGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                 const Mismatches& mismatches) {
  if constexpr (V::kFewRegisters) {
    const size_t blocks = Min(g.words * 4, k.block_count - g.word * 4);
    const bool whole = WholeBlocks(k, g.word * 4, blocks) == blocks;
    if (BINARIZE_LIKELY(whole && !mismatches.has_above && IsPlain(k, row))) {
      return FinishPlainBlocks<V, E>(k, call, row, g, blocks, mismatches);
    }
  }
  for (size_t i = 0; i < g.words; ++i) {
    const size_t channels = k.channels_out - (g.word + i) * kWordChannels, full = Min(channels / kLanes, 4);
    if (full == 4) {
      FinishBlocksOfWord<V, E, 4, true>(k, call, row, g, i, 0, mismatches);
      continue;
    }
    size_t n = 0;
    if (full >= 2) {
      FinishBlocksOfWord<V, E, 2, true>(k, call, row, g, i, 0, mismatches);
      n = 2;
    }
    if (n < full) {
      FinishBlocksOfWord<V, E, 1, true>(k, call, row, g, i, n, mismatches);
      ++n;
    }
    if (n * kLanes < channels) FinishBlocksOfWord<V, E, 1, false>(k, call, row, g, i, n, mismatches);
  }
}

using CountFunction = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, const Term&, const Group&,
                               Mismatches&);

// ---------------------------------------------------------------------------------------------- Several terms

// The sums of the terms so far, by position and channel.
struct TermSums {
  alignas(64) float sums[kGroupWords][kWordChannels];
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Goes through the group's blocks and tiles: tile(block, position, column, pixels), where `pixels` is a Number.
template <class F>
BINARIZE_INLINE void ForEachTile(const ConvConst& k, const Group& g, const F& tile) {
  const size_t end = Min((g.word + g.words) * 4, k.block_count);
  for (size_t block = g.word * 4; block < end; ++block) {
    const size_t first = block / 4 - g.word;
    size_t m = 0;
    for (; m + kTilePixels <= g.pixels; m += kTilePixels) {
      tile(block, m * g.step + first, g.column + m, Number<kTilePixels>());
    }
    for (; m < g.pixels; ++m) tile(block, m * g.step + first, g.column + m, Number<1>());
  }
}

// Adds what a group counted as term `term`, but for the last one, to its sums, which begin with the bias.
template <class V>
__attribute__((noinline)) void AddTermOfGroup(const ConvConst& k, const ConvRow& row, const Group& g, size_t term,
                                              const Mismatches& mismatches, TermSums& so_far) {
  ForEachTile(k, g, [&](size_t block, size_t position, size_t column, auto pixels) {
    constexpr int kPixels = decltype(pixels)::value;
    const Tile<kPixels> bases = MakeTile<kPixels>(k, row, column, term / k.planes);
    typename V::Ints accumulators[1][kPixels];
    Subtract<V>(mismatches, bases, g, position, block % 4, block, accumulators);
    float* sums = so_far.sums[position] + block % 4 * kLanes;
    const size_t step = g.step * kWordChannels;
    typename V::Floats t[kPixels];
    BINARIZE_UNROLL
    for (int m = 0; m < kPixels; ++m) t[m] = V::Load(term == 0 ? k.bias + block * kLanes : sums + m * step);
    AddTerm<V, kPixels>(k, row, column, block, term, accumulators[0], t);
    BINARIZE_UNROLL
    for (int m = 0; m < kPixels; ++m) V::Store(sums + m * step, t[m]);
  });
}

// The last term, and the epilogue.
template <class V, class E>
__attribute__((noinline)) void FinishTermsOfGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                                  const Group& g, const Mismatches& mismatches, const TermSums& so_far) {
  ForEachTile(k, g, [&](size_t block, size_t position, size_t column, auto pixels) {
    constexpr int kPixels = decltype(pixels)::value;
    alignas(64) float link_sums[1][kPixels][kLanes];
    Link<E, 1> link;
    PrepareLink<V>(k, call, row, block, column, link_sums, link);
    const Tile<kPixels> bases = MakeTile<kPixels>(k, row, column, k.bases - 1);
    typename V::Ints accumulators[1][kPixels];
    Subtract<V>(mismatches, bases, g, position, block % 4, block, accumulators);
    const float* sums = so_far.sums[position] + block % 4 * kLanes;
    const size_t step = g.step * kWordChannels;
    if (k.blocks[block].lanes == kLanes) {
      Finish<V, true, 1>(k, row, column, link, block, 0, accumulators, sums, step);
    } else {
      Finish<V, false, 1>(k, row, column, link, block, 0, accumulators, sums, step);
    }
  });
}

template <class V, class E>
BINARIZE_INLINE void FinishTermsOf(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                   CountFunction count, Mismatches& mismatches) {
  TermSums sums;
  for (size_t term = 0; term < k.terms; ++term) {
    count(k, call, row, FindTerm(k, call, row, term), g, mismatches);
    if (term + 1 < k.terms) AddTermOfGroup<V>(k, row, g, term, mismatches, sums);
  }
  FinishTermsOfGroup<V, E>(k, call, row, g, mismatches, sums);
}

// ---------------------------------------------------------------------------------------------- Rows

// Groups of pixels, as many as there are positions: count all their words, then finish them in tiles of four pixels, so
// that the epilogue's parameters serve four. The words from one pixel to the next, with those a stride skips, are counted
// as one run (whose weights repeat) where that fills registers better than pixel by pixel. From 1025 channels on a group
// is a part of one pixel.
template <class V, class E>
BINARIZE_INLINE void DepthwiseRow(const ConvConst& k, const ConvCall& call, const ConvRow& row, CountFunction count) {
  const size_t words = k.words_in, distance = call.pixel_step / 2;
  const size_t alone = (words + V::kWords - 1) / V::kWords * V::kWords;
  Group g{};
  g.one_run = distance <= alone && distance * kTilePixels <= kGroupWords;
  g.step = g.one_run ? distance : alone;
  const bool several = g.step * kTilePixels <= kGroupWords;
  const size_t pixels = several ? kGroupWords / g.step / kTilePixels * kTilePixels : 1;
  Mismatches mismatches;
  for (g.column = row.begin; g.column < row.end; g.column += g.pixels) {
    g.pixels = Min(pixels, row.end - g.column);
    for (g.word = 0; g.word < words; g.word += g.words) {
      g.words = Min(kGroupWords, words - g.word);
      if (BINARIZE_UNLIKELY(k.terms > 1)) {
        FinishTermsOf<V, E>(k, call, row, g, count, mismatches);
        continue;
      }
      count(k, call, row, FindTerm(k, call, row, 0), g, mismatches);
      FinishGroup<V, E>(k, call, row, g, mismatches);
    }
  }
}

template <class V, class E>
void DepthwiseElements(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  const size_t taps = k.kernel_h * k.kernel_w;
  const CountFunction count = taps < 16     ? CountGroup<V, 4>  // 3x3
                              : taps < 32   ? CountGroup<V, 5>  // 5x5
                              : taps < 64   ? CountGroup<V, 6>  // 7x7
                              : taps < 1024 ? CountGroup<V, 10>
                                            : CountGroup<V, kMostPlanes>;
  for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
    DepthwiseRow<V, E>(k, call, *row, count);
  }
}

template <class V>
void Depthwise(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  k.element == Element::kFloat16 ? DepthwiseElements<V, Half>(k, call, work)
                                    : DepthwiseElements<V, float>(k, call, work);
}

}  // namespace generic
}  // namespace binarize
