// Depthwise convolution by bit-sliced counters: a register holds one bit plane of the counters of all its channels, and
// carry-save adders count the mismatches of whole words, tap by tap.
//
// V::Words is a register of V::kWords uint64: ZeroWords(), LoadWords(p), LoadFirstWords(p, n) without touching memory
// past n, StoreWords, XorWords, AndWords, Parity(a, b, c), Majority(a, b, c).
// V::Spread<PLANES>(planes, step, doubled): twice the counters of the 64 channels of one word, as four blocks; plane p
// of the word is planes[p * step], and PLANES <= kBytePlanes.
#pragma once

#include "isa/generic/epilogue.h"

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

// Mismatches of the first `present` words from `bits` on: loads xor weights, counted over all taps.
template <class V, int PLANES>
BINARIZE_INLINE void CountTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row, const uint32_t* bits,
                               size_t first_word, size_t present, typename V::Words (&plane)[PLANES]) {
  BINARIZE_UNROLL
  for (int p = 0; p < PLANES; ++p) plane[p] = V::ZeroWords();
  const uint64_t* weights = k.depthwise + row.tap_begin * k.kernel_w * k.depthwise_step + first_word;
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

// Counters of words of 64 channels: plane p of word i is in chunk i / kWords.
constexpr size_t kBufferWords = 64;
constexpr size_t kTilePixels = 4;
template <class V, int PLANES>
struct Counters {
  alignas(64) uint64_t plane[kBufferWords / V::kWords][PLANES][V::kWords];
};

// Twice the counters of one word as four blocks of int32.
template <class V, int PLANES>
BINARIZE_INLINE void SpreadWord(const Counters<V, PLANES>& counters, size_t position, typename V::Ints (&doubled)[4]) {
  const uint64_t* planes = &counters.plane[position / V::kWords][0][position % V::kWords];
  V::template Spread<(PLANES < kBytePlanes ? PLANES : kBytePlanes)>(planes, V::kWords, doubled);
  if constexpr (PLANES > kBytePlanes) {  // only kernels of 128 taps and more
    alignas(64) uint32_t more[4 * kLanes] = {};
    for (int p = kBytePlanes; p < PLANES; ++p) {
      const uint64_t bits = planes[static_cast<size_t>(p) * V::kWords];
      for (size_t channel = 0; channel < 4 * kLanes; ++channel) more[channel] += ((bits >> channel) & 1) << (p + 1);
    }
    for (int n = 0; n < 4; ++n) doubled[n] = V::AddInts(doubled[n], V::LoadInts(more + n * kLanes));
  }
}

// BLOCKS blocks of a word, all of 16 lanes if FULL, of PIXELS neighbouring pixels whose counters are `step` positions
// apart. Several blocks start at the word's first.
template <class V, class E, int PLANES, int PIXELS, int BLOCKS, bool FULL>
BINARIZE_INLINE void FinishWord(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column, size_t word,
                                size_t first, const Counters<V, PLANES>& counters, size_t position, size_t step) {
  alignas(64) float link_sums[BLOCKS][PIXELS][kLanes];
  Link<E, BLOCKS> link;
  PrepareLink<V>(k, call, row, word * 4 + first, column, link_sums, link);
  typename V::Ints spread[PIXELS][4];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) SpreadWord<V, PLANES>(counters, position + m * step, spread[m]);
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k, row, column);
  const size_t block = word * 4 + first;
  typename V::Ints accumulators[BLOCKS][PIXELS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) {
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) {
      const typename V::Ints doubled = BLOCKS == 1 ? spread[m][first] : spread[m][n];
      accumulators[n][m] = V::SubInts(V::LoadInts(tile.base[m] + (block + n) * kLanes), doubled);
    }
  }
  FinishBlocks<V, FULL>(k, row, column, link, block, accumulators);
}

// All blocks of a word.
template <class V, class E, int PLANES, int PIXELS>
BINARIZE_INLINE void FinishPixels(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column,
                                  size_t word, const Counters<V, PLANES>& counters, size_t position, size_t step) {
  if (word * 64 + 64 <= k.channels_out) {
    return FinishWord<V, E, PLANES, PIXELS, 4, true>(k, call, row, column, word, 0, counters, position, step);
  }
  const size_t full = (k.channels_out - word * 64) / kLanes;
  size_t n = 0;
  if (full >= 2) {
    FinishWord<V, E, PLANES, PIXELS, 2, true>(k, call, row, column, word, 0, counters, position, step);
    n = 2;
  }
  for (; n < full; ++n) {
    FinishWord<V, E, PLANES, PIXELS, 1, true>(k, call, row, column, word, n, counters, position, step);
  }
  if (word * 4 + n < k.block_count) {
    FinishWord<V, E, PLANES, PIXELS, 1, false>(k, call, row, column, word, n, counters, position, step);
  }
}

// Words [word, word + words) of `pixels` pixels from `column` on, and where their counters lie.
struct Group {
  size_t column, pixels, word, words;
  size_t step;   // counters from one pixel to the next
  bool one_run;  // all words of all pixels are neighbours in memory
};

template <class V, int PLANES>
BINARIZE_INLINE void CountGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                Counters<V, PLANES>& counters) {
  const size_t runs = g.one_run ? 1 : g.pixels;
  const size_t length = g.one_run ? (g.pixels - 1) * g.step + g.words : g.words;
  for (size_t run = 0; run < runs; ++run) {
    const uint32_t* bits = row.bits + (g.column + run) * call.pixel_step + 2 * g.word;
    for (size_t at = 0; at < length; at += V::kWords) {
      typename V::Words count[PLANES];
      CountTaps<V>(k, call, row, bits + 2 * at, (g.word + at) % k.words_in, Min(V::kWords, length - at), count);
      auto& plane = counters.plane[(run * g.step + at) / V::kWords];
      BINARIZE_UNROLL
      for (int p = 0; p < PLANES; ++p) V::StoreWords(plane[p], count[p]);
    }
  }
}

template <class V, class E, int PLANES>
BINARIZE_INLINE void FinishGroup(const ConvConst& k, const ConvCall& call, const ConvRow& row, const Group& g,
                                 const Counters<V, PLANES>& counters) {
  for (size_t m = 0; m < g.pixels;) {
    const bool several = m + kTilePixels <= g.pixels;
    for (size_t i = 0; i < g.words; ++i) {
      const size_t column = g.column + m, word = g.word + i, position = m * g.step + i;
      if (several) {
        FinishPixels<V, E, PLANES, kTilePixels>(k, call, row, column, word, counters, position, g.step);
      } else {
        FinishPixels<V, E, PLANES, 1>(k, call, row, column, word, counters, position, 0);
      }
    }
    m += several ? kTilePixels : 1;
  }
}

// Groups of pixels, as many as the buffer of counters holds: count all their words, then finish them in tiles of four
// pixels, so that the epilogue's parameters serve four. The words from one pixel to the next, with those a stride skips,
// are counted as one run (whose weights repeat) where that fills registers better than pixel by pixel. From 1025 channels
// on a group is a part of one pixel.
template <class V, class E, int PLANES>
void DepthwiseRow(const ConvConst& k, const ConvCall& call, const ConvRow& row) {
  const size_t words = k.words_in, distance = call.pixel_step / 2;
  const size_t alone = (words + V::kWords - 1) / V::kWords * V::kWords;
  Group g{};
  g.one_run = distance <= alone && distance * kTilePixels <= kBufferWords;
  g.step = g.one_run ? distance : alone;
  const bool several = g.step * kTilePixels <= kBufferWords;
  const size_t pixels = several ? kBufferWords / g.step / kTilePixels * kTilePixels : 1;
  Counters<V, PLANES> counters;
  for (g.column = row.begin; g.column < row.end; g.column += g.pixels) {
    g.pixels = Min(pixels, row.end - g.column);
    for (g.word = 0; g.word < words; g.word += g.words) {
      g.words = Min(kBufferWords, words - g.word);
      CountGroup<V, PLANES>(k, call, row, g, counters);
      FinishGroup<V, E, PLANES>(k, call, row, g, counters);
    }
  }
}

template <class V, class E>
void DepthwiseElements(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  const size_t taps = k.kernel_h * k.kernel_w;
  const auto kernel = taps < 16   ? DepthwiseRow<V, E, 4>   // 3x3
                      : taps < 32 ? DepthwiseRow<V, E, 5>   // 5x5
                      : taps < 64 ? DepthwiseRow<V, E, 6>   // 7x7
                      : taps < 1024 ? DepthwiseRow<V, E, 10>
                                    : DepthwiseRow<V, E, kMostPlanes>;
  for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) kernel(k, call, *row);
}

template <class V>
void Depthwise(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  k.element == Element::kFloat16 ? DepthwiseElements<V, Half>(k, call, work)
                                    : DepthwiseElements<V, float>(k, call, work);
}

}  // namespace generic
}  // namespace binarize
