// Direct convolution by table, for instruction sets that shuffle bytes better than they count bits.
//
// Weights lie as nibbles in bytes: a register ("panel") holds the same four input channels of 16 * V::kPanelBlocks output
// channels. For each nibble of the map there is a table of 16 bytes that says how many bits of any nibble differ from it, so
// one shuffle counts the mismatches of four channels of all its outputs: two instructions, shuffle and add, per panel,
// where xor, shuffle and add of both nibbles of a byte would take three.
//
// Where there are many panels, two pixels share a table: a byte of it counts one pixel's mismatches in its low nibble and
// the other's in its high one. Three shuffles add up before a nibble overflows; to take them apart costs four instructions,
// so that nine do what twelve did.
//
// V: Panel, kPanelBlocks; kPanels x kPanelPixels of a tile, whose panels are counted kPanelSums at a time, as many as fit
// the registers; ZeroPanel(), LoadPanel(p), LoadTable(p) to all 16-byte parts, LookUp(sums, table, weights), PinPanel(x) as
// Pin; StorePanel(x, counts) and AddPanel(x, counts): its bytes become, or are added to, uint16[16 * kPanelBlocks];
// LoadCounts(counts): sixteen of those as Ints. kSharesTables: two pixels of kPanels panels share tables, by
// AddLowNibbles(sums, x), to bytes; AddHighNibbles(sums, x), to uint16, each of which gets those of its upper byte times
// 256 and the low nibbles of that byte times 16; and HighNibbles(high, low), the sums of high nibbles as bytes.
// kComparesCounts: bits come from counts below 2^15, by CountLimits MakeCountLimits(base, limits, once): what the counts of
// a panel have to be below of for accumulators above `limits`; StoreBelow(bits, counts, limits): a panel's bits.
#pragma once

#include "isa/generic/conv.h"
#include "isa/generic/plain_epilogue.h"

namespace binarize {
namespace generic {

// Byte b of the map has the tables of its low and of its high nibble at [b][0] and [b][1].
struct Tables {
  alignas(64) uint8_t mismatches[256][2][16];
};

constexpr uint8_t OnesOfNibble(unsigned x) {
  return static_cast<uint8_t>((x & 1) + ((x >> 1) & 1) + ((x >> 2) & 1) + ((x >> 3) & 1));
}

constexpr Tables MakeTables() {
  Tables tables{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned w = 0; w < 16; ++w) {
      tables.mismatches[byte][0][w] = OnesOfNibble((byte & 15) ^ w);
      tables.mismatches[byte][1][w] = OnesOfNibble((byte >> 4) ^ w);
    }
  }
  return tables;
}

static constexpr Tables kTables = MakeTables();

// A byte of a map of ternary pairs, a nibble of signs below one of nonzeros, has its table at [byte].
struct TernaryTables {
  alignas(64) uint8_t mismatches[256][16];
};

constexpr TernaryTables MakeTernaryTables() {
  TernaryTables tables{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned w = 0; w < 16; ++w) tables.mismatches[byte][w] = OnesOfNibble((byte ^ w) & (byte >> 4));
  }
  return tables;
}

static constexpr TernaryTables kTernaryTables = MakeTernaryTables();

// A byte of two pixels' nibbles has their table at [byte]: of the low one, and 16 times that of the high one.
struct PairTables {
  alignas(64) uint8_t mismatches[256][16];
};

constexpr PairTables MakePairTables() {
  PairTables tables{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned w = 0; w < 16; ++w) {
      tables.mismatches[byte][w] =
          static_cast<uint8_t>(OnesOfNibble((byte & 15) ^ w) + 16 * OnesOfNibble((byte >> 4) ^ w));
    }
  }
  return tables;
}

static constexpr PairTables kPairTables = MakePairTables();

// Of nibble `nibble` of two that follow each other, at byte `map` of a word or of the first of a pair.
template <bool TERNARY>
BINARIZE_INLINE const uint8_t* FindTable(const uint8_t* map, size_t nibble) {
  return TERNARY ? kTernaryTables.mismatches[map[4 * nibble]] : kTables.mismatches[map[0]][nibble];
}

constexpr size_t kNibbles = 8;        // of a word
constexpr size_t kWordsPerFlush = 7;  // a word adds at most 32 to a byte
constexpr size_t kPairSteps = 3;      // each adds at most 4 to a nibble
constexpr size_t kTaps = 3;           // of a row of a kernel, where they share tables
constexpr size_t kTapWordsPerFlush = 2;  // a word of each adds at most 96 to a byte

// Mismatches of a tile: [pixel][panel][lane of its blocks]. ConvPlan makes no panels of convs that exceed 16 bits.
template <class V, int PIXELS, int PANELS>
struct PanelCounts {
  static constexpr size_t kStep = PANELS * V::kPanelBlocks * kLanes;  // from pixel to pixel
  alignas(64) uint16_t value[PIXELS][kStep];
};

// Counts the mismatches of PIXELS pixels, for at most kWordsPerFlush words of the map and PANELS panels `panel_step` bytes
// apart. `first`: they become the counts, `step` from pixel to pixel; else they are added to them. A function of its own,
// so that every tile shares it and the registers are its own.
template <class V, bool TERNARY, int PIXELS, int PANELS>
__attribute__((noinline)) void LookUpWords(const uint32_t* bits, size_t pixel_step, const uint8_t* weights,
                                           size_t panel_step, size_t words, bool first, uint16_t* counts, size_t step) {
  constexpr size_t kLine = V::kPanelBlocks * kLanes;  // bytes of one nibble
  typename V::Panel count[PIXELS][PANELS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < PANELS; ++n) count[m][n] = V::ZeroPanel();
  }
  for (size_t word = 0; word < words; ++word, bits += TERNARY ? 2 : 1) {
    const uint8_t* map = reinterpret_cast<const uint8_t*>(bits);
    BINARIZE_UNROLL
    for (size_t nibble = 0; nibble < kNibbles; ++nibble, weights += kLine) {
      typename V::Panel table[PIXELS];
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        table[m] = V::LoadTable(FindTable<TERNARY>(map + 4 * m * pixel_step + nibble / 2, nibble % 2));
        V::PinPanel(table[m]);
      }
      BINARIZE_UNROLL
      for (int n = 0; n < PANELS; ++n) {
        typename V::Panel nibbles = V::LoadPanel(weights + n * panel_step);
        V::PinPanel(nibbles);  // else GCC loads it again for each pixel
        BINARIZE_UNROLL
        for (int m = 0; m < PIXELS; ++m) {
          count[m][n] = V::LookUp(count[m][n], table[m], nibbles);
          V::PinPanel(count[m][n]);
        }
      }
    }
  }
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < PANELS; ++n) {
      uint16_t* at = counts + m * step + n * kLine;
      first ? V::StorePanel(count[m][n], at) : V::AddPanel(count[m][n], at);
    }
  }
}

// Of words a and b: their nibbles side by side, first the even ones, then the odd ones.
BINARIZE_INLINE uint64_t PairNibbles(uint32_t a, uint32_t b) {
  constexpr uint32_t kLow = 0x0F0F0F0Fu, kHigh = ~kLow;
  const uint32_t even = (a & kLow) | ((b << 4) & kHigh), odd = ((a >> 4) & kLow) | (b & kHigh);
  return even | static_cast<uint64_t>(odd) << 32;
}

// The table of nibble `nibble`. Its 16 bytes are shifted into place, because no address is 16 times a register.
BINARIZE_INLINE const uint8_t* FindPairTable(uint64_t pairs, size_t nibble) {
  const size_t from = 8 * (nibble / 2 + 4 * (nibble % 2));
  const size_t at = from == 0 ? pairs << 4 : pairs >> (from - 4);
  return kPairTables.mismatches[0] + (at & 0xFF0);
}

// Takes apart what a nibble of each of two pixels has counted: see V::AddHighNibbles.
template <class V>
BINARIZE_INLINE void AddPairSums(typename V::Panel both, typename V::Panel& low, typename V::Panel& high) {
  low = V::AddLowNibbles(low, both);
  high = V::AddHighNibbles(high, both);
  V::PinPanel(low);
  V::PinPanel(high);
}

// The mismatches of two pixels become, or are added to, their counts.
template <class V>
BINARIZE_INLINE void FlushPair(typename V::Panel low, typename V::Panel high, bool first, uint16_t* counts,
                               uint16_t* second_counts) {
  const typename V::Panel second = V::HighNibbles(high, low);
  first ? V::StorePanel(low, counts) : V::AddPanel(low, counts);
  first ? V::StorePanel(second, second_counts) : V::AddPanel(second, second_counts);
}

// LookUpWords of two pixels that share tables.
template <class V, int PANELS>
__attribute__((noinline)) void LookUpPairs(const uint32_t* bits, size_t pixel_step, const uint8_t* weights,
                                           size_t panel_step, size_t words, bool first, uint16_t* counts, size_t step) {
  constexpr size_t kLine = V::kPanelBlocks * kLanes;
  typename V::Panel low[PANELS], high[PANELS];
  BINARIZE_UNROLL
  for (int n = 0; n < PANELS; ++n) low[n] = high[n] = V::ZeroPanel();
  for (size_t word = 0; word < words; ++word, ++bits) {
    const uint64_t pairs = PairNibbles(bits[0], bits[pixel_step]);
    typename V::Panel both[PANELS];
    BINARIZE_UNROLL
    for (size_t nibble = 0; nibble < kNibbles; ++nibble, weights += kLine) {
      typename V::Panel table = V::LoadTable(FindPairTable(pairs, nibble));
      V::PinPanel(table);
      BINARIZE_UNROLL
      for (int n = 0; n < PANELS; ++n) {
        const typename V::Panel sums = nibble % kPairSteps == 0 ? V::ZeroPanel() : both[n];
        both[n] = V::LookUp(sums, table, V::LoadPanel(weights + n * panel_step));
        V::PinPanel(both[n]);
        if (nibble % kPairSteps != kPairSteps - 1 && nibble != kNibbles - 1) continue;
        AddPairSums<V>(both[n], low[n], high[n]);
      }
    }
  }
  BINARIZE_UNROLL
  for (int n = 0; n < PANELS; ++n) {
    FlushPair<V>(low[n], high[n], first, counts + n * kLine, counts + n * kLine + step);
  }
}

// Of a row of kTaps taps that see neighbouring columns, the mismatches over at most kTapWordsPerFlush words of each, whose
// weights are `tap_bytes` apart. Two pixels share a table as in LookUpPairs, and so do the taps at which others of the tile
// see the same two columns.
template <class V, int PIXELS, int PANELS>
__attribute__((noinline)) void LookUpNeighbours(const uint32_t* bits, size_t pixel_step, const uint8_t* weights,
                                                size_t tap_bytes, size_t panel_step, size_t words, bool first,
                                                uint16_t* counts, size_t step) {
  static_assert(kTaps == kPairSteps, "the sums of a row's taps would overflow a nibble");
  constexpr size_t kLine = V::kPanelBlocks * kLanes;
  constexpr int kPairs = PIXELS / 2, kRow = static_cast<int>(kTaps), kColumns = kPairs + kRow - 1;
  typename V::Panel low[kPairs][PANELS], high[kPairs][PANELS];
  BINARIZE_UNROLL
  for (int m = 0; m < kPairs; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < PANELS; ++n) low[m][n] = high[m][n] = V::ZeroPanel();
  }
  for (size_t word = 0; word < words; ++word, ++bits) {
    uint64_t pairs[kColumns];
    BINARIZE_UNROLL
    for (int c = 0; c < kColumns; ++c) pairs[c] = PairNibbles(bits[c * pixel_step], bits[(c + kPairs) * pixel_step]);
    BINARIZE_UNROLL
    for (size_t nibble = 0; nibble < kNibbles; ++nibble, weights += kLine) {
      typename V::Panel both[kPairs][PANELS];
      BINARIZE_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        typename V::Panel table = V::LoadTable(FindPairTable(pairs[c], nibble));
        V::PinPanel(table);
        BINARIZE_UNROLL
        for (int tap = 0; tap < kRow; ++tap) {
          const int m = c - tap;
          if (m < 0 || m >= kPairs) continue;
          BINARIZE_UNROLL
          for (int n = 0; n < PANELS; ++n) {
            const typename V::Panel sums = tap == 0 ? V::ZeroPanel() : both[m][n];
            both[m][n] = V::LookUp(sums, table, V::LoadPanel(weights + tap * tap_bytes + n * panel_step));
            V::PinPanel(both[m][n]);
          }
        }
      }
      BINARIZE_UNROLL
      for (int m = 0; m < kPairs; ++m) {
        BINARIZE_UNROLL
        for (int n = 0; n < PANELS; ++n) AddPairSums<V>(both[m][n], low[m][n], high[m][n]);
      }
    }
  }
  BINARIZE_UNROLL
  for (int m = 0; m < kPairs; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < PANELS; ++n) {
      uint16_t* at = counts + m * step + n * kLine;
      FlushPair<V>(low[m][n], high[m][n], first, at, at + kPairs * step);
    }
  }
}

// LookUpWords of all pixels of a tile from pixel FROM on.
template <class V, bool TERNARY, int PIXELS, int PANELS, int FROM = 0>
BINARIZE_INLINE void LookUpPixels(const uint32_t* bits, size_t pixel_step, const uint8_t* weights, size_t panel_step,
                                  size_t words, bool first, PanelCounts<V, PIXELS, PANELS>& counts) {
  constexpr bool kPair = V::kSharesTables && !TERNARY && PANELS == V::kPanels && PIXELS - FROM >= 2;
  constexpr int kMost = kPair ? 2 : V::kPanelSums / PANELS, kNow = PIXELS - FROM < kMost ? PIXELS - FROM : kMost;
  const uint32_t* from = bits + FROM * pixel_step;
  uint16_t* to = counts.value[FROM];
  if constexpr (kPair) {
    LookUpPairs<V, PANELS>(from, pixel_step, weights, panel_step, words, first, to, counts.kStep);
  } else {
    LookUpWords<V, TERNARY, kNow, PANELS>(from, pixel_step, weights, panel_step, words, first, to, counts.kStep);
  }
  if constexpr (FROM + kNow < PIXELS) {
    LookUpPixels<V, TERNARY, PIXELS, PANELS, FROM + kNow>(bits, pixel_step, weights, panel_step, words, first, counts);
  }
}

// Where the taps of a row's tiles lie, for the panels from a block on: see Taps in conv.h.
struct PanelTaps {
  const uint32_t* map;     // of column 0
  const uint8_t* weights;
  size_t rows, runs, words;  // rows of the kernel inside the map, runs of such a row, words of a run
  size_t panel_step;         // bytes from panel to panel
  bool neighbours;           // the taps of a row are the words of kTaps neighbours of its pixels, `words` of each
};

// Of `block`, for the input's plane `plane` and the weight's base `base`.
template <class V, bool TERNARY>
BINARIZE_INLINE PanelTaps FindPanelTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                        size_t base, size_t plane) {
  constexpr size_t kWordBytes = kNibbles * V::kPanelBlocks * kLanes, kWords = TERNARY ? 2 : 1;
  const Block& b = k.blocks[base * k.block_count + block];
  const bool one_run = call.tap_step == b.span * kWords;  // a kernel row is one run of words
  PanelTaps taps;
  taps.map = row.bits + b.first * kWords + plane * call.plane_step;
  taps.weights = k.nibbles + b.nibbles + row.tap_begin * k.kernel_w * b.span * kWordBytes;
  taps.rows = row.tap_end - row.tap_begin;
  taps.neighbours = !TERNARY && k.kernel_w == kTaps && call.tap_step == call.pixel_step;
  taps.runs = one_run ? 1 : k.kernel_w;
  taps.words = one_run ? k.kernel_w * b.span : b.span;
  taps.panel_step = k.kernel_h * k.kernel_w * b.span * kWordBytes;
  return taps;
}

// LookUpTaps where the taps of a row are neighbours.
template <class V, int PIXELS, int PANELS>
BINARIZE_INLINE void LookUpRows(const ConvCall& call, const PanelTaps& taps, size_t column,
                                PanelCounts<V, PIXELS, PANELS>& counts) {
  constexpr size_t kWordBytes = kNibbles * V::kPanelBlocks * kLanes;
  const size_t words = taps.runs == 1 ? taps.words / kTaps : taps.words, tap_bytes = words * kWordBytes;
  const uint32_t* map_row = taps.map + column * call.pixel_step;
  const uint8_t* weights = taps.weights;
  bool first = true;
  for (size_t r = 0; r < taps.rows; ++r, map_row += call.row_step, weights += kTaps * tap_bytes) {
    for (size_t i = 0; i < words; i += kTapWordsPerFlush) {
      LookUpNeighbours<V, PIXELS, PANELS>(map_row + i, call.pixel_step, weights + i * kWordBytes, tap_bytes,
                                          taps.panel_step, Min(words - i, kTapWordsPerFlush), first, counts.value[0],
                                          counts.kStep);
      first = false;
    }
  }
  if (BINARIZE_UNLIKELY(first)) counts = {};
}

// Mismatches of the tile at `column`.
template <class V, bool TERNARY, int PIXELS, int PANELS>
BINARIZE_INLINE void LookUpTaps(const ConvCall& call, const PanelTaps& taps, size_t column,
                                PanelCounts<V, PIXELS, PANELS>& counts) {
  constexpr size_t kWordBytes = kNibbles * V::kPanelBlocks * kLanes, kWords = TERNARY ? 2 : 1;
  if constexpr (V::kSharesTables && !TERNARY && PIXELS % 2 == 0 && PANELS < V::kPanels) {
    if (taps.neighbours) return LookUpRows<V>(call, taps, column, counts);
  }
  const uint32_t* map_row = taps.map + column * call.pixel_step;
  const uint8_t* weights = taps.weights;
  bool first = true;
  for (size_t r = 0; r < taps.rows; ++r, map_row += call.row_step) {
    for (size_t run = 0; run < taps.runs; ++run) {
      const uint32_t* bits = map_row + run * call.tap_step;
      for (size_t i = 0, now; i < taps.words; i += now, weights += now * kWordBytes) {
        now = Min(taps.words - i, kWordsPerFlush);
        LookUpPixels<V, TERNARY>(bits + i * kWords, call.pixel_step, weights, taps.panel_step, now, first, counts);
        first = false;
      }
    }
  }
  if (BINARIZE_UNLIKELY(first)) counts = {};
}

// A function of its own, as in conv.h.
template <class V, int PIXELS, int PANELS>
__attribute__((noinline)) void LookUpTernaryTaps(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                                 size_t block, size_t column, size_t base, size_t plane,
                                                 PanelCounts<V, PIXELS, PANELS>& counts) {
  LookUpTaps<V, true>(call, FindPanelTaps<V, true>(k, call, row, block, base, plane), column, counts);
}

// Mismatches of the tile at `column`, over the input's plane `plane` and the weight's base `base`.
template <class V, int PIXELS, int PANELS>
BINARIZE_INLINE void CountPanels(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                 size_t column, size_t base, size_t plane, PanelCounts<V, PIXELS, PANELS>& counts) {
  if (k.ternary) return LookUpTernaryTaps(k, call, row, block, column, base, plane, counts);
  LookUpTaps<V, false>(call, FindPanelTaps<V, false>(k, call, row, block, base, plane), column, counts);
}

// Accumulators, or half of them, of PIXELS pixels of one block, for the input's plane `plane` and the weight's base of
// `tile`; their counts lie `step` apart.
template <class V, int PIXELS>
BINARIZE_INLINE void LoadAccumulators(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t column,
                                      const Tile<PIXELS>& tile, size_t block, size_t plane, const uint16_t* counts,
                                      size_t step, typename V::Ints (&accumulators)[PIXELS]) {
  if (BINARIZE_LIKELY(!k.ternary && k.counts_once && tile.one_base)) {
    const typename V::Ints base = V::LoadInts(tile.base[0] + block * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) accumulators[m] = V::SubInts(base, V::LoadCounts(counts + m * step));
    return;
  }
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) accumulators[m] = V::SubInts(V::ZeroInts(), V::LoadCounts(counts + m * step));
  k.ternary ? AddNonzeros<V>(call, row, column, plane, accumulators) : AddBase<V>(k, tile, block, accumulators);
}

// The terms of a tile but the last, from the bias on, as float32.
template <class V, int PIXELS, int PANELS>
__attribute__((noinline)) void SumLookedUpTerms(const ConvConst& k, const ConvCall& call, const ConvRow& row,
                                                size_t block, size_t column, size_t blocks,
                                                float (&sums)[PIXELS][PANELS * V::kPanelBlocks * kLanes]) {
  for (size_t n = 0; n < blocks; ++n) {
    for (auto& pixel : sums) V::Store(pixel + n * kLanes, V::Load(k.bias + (block + n) * kLanes));
  }
  for (size_t term = 0; term + 1 < k.terms; ++term) {
    PanelCounts<V, PIXELS, PANELS> counts;
    const size_t base = term / k.planes, plane = term % k.planes;
    CountPanels(k, call, row, block, column, base, plane, counts);
    for (int m = 0; m < PIXELS; ++m) {
      const Tile<1> tile = MakeTile<1>(k, row, column + m, base);
      for (size_t n = 0; n < blocks; ++n) {
        typename V::Ints accumulators[1];
        LoadAccumulators<V, 1>(k, call, row, column + m, tile, block + n, plane, counts.value[m] + n * kLanes, 0,
                               accumulators);
        typename V::Floats t[1] = {V::Load(sums[m] + n * kLanes)};
        AddTerm<V, 1>(k, row, column + m, block + n, term, accumulators, t);
        V::Store(sums[m] + n * kLanes, t[0]);
      }
    }
  }
}

// Whether what is looked up in a row goes the way of FinishPlain: accumulators are a base less counts.
BINARIZE_INLINE bool CountsArePlain(const ConvConst& k, const ConvRow& row) {
  return k.counts_once && !k.ternary && IsPlain(k, row);
}

// A tile of which not all is plain, or that has a short block: what is plain comes first, the other blocks one by one.
template <class V, class E, int PIXELS, int PANELS>
__attribute__((noinline)) void LookupAnyTile(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                             size_t column) {
  constexpr size_t kStep = PanelCounts<V, PIXELS, PANELS>::kStep;
  const size_t blocks = Min(k.blocks[block].alike, PANELS * V::kPanelBlocks);
  const size_t plain = CountsArePlain(k, row) ? WholeBlocks(k, block, blocks) : 0;
  alignas(64) float sums[PIXELS][kStep], link_sums[PANELS * V::kPanelBlocks][PIXELS][kLanes];
  if (BINARIZE_UNLIKELY(k.terms > 1)) SumLookedUpTerms<V, PIXELS, PANELS>(k, call, row, block, column, blocks, sums);
  TileLink<E> plain_link{};
  if (plain > 0) plain_link = FindTileLink<V, E, PIXELS>(k, call, row, block, plain, column, link_sums[0][0]);
  Link<E, 1> link{};
  if (row.link != nullptr && plain < blocks) {
    if (ReadsMap<V>(k.blocks[block + plain])) FindMap(call, row, column, PIXELS, link);
    if (link.map == nullptr) {
      LinkValues<V, E, PIXELS>(k, call, row, block + plain, blocks - plain, column, link_sums[plain][0]);
    }
  }
  FetchOutput<E, PIXELS, PANELS * V::kPanelBlocks>(k, row, block, column);
  PanelCounts<V, PIXELS, PANELS> counts;
  CountPanels(k, call, row, block, column, k.bases - 1, k.planes - 1, counts);
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k, row, column, k.bases - 1);
  if (plain > 0) FinishPlain<V>(k, row, column, tile, plain_link, block, plain, counts.value[0], kStep);
  for (size_t n = plain; n < blocks; ++n) {
    const Block& b = k.blocks[block + n];
    link.values[0] = link_sums[n][0];
    if (link.map != nullptr && BINARIZE_UNLIKELY(!ReadsMap<V>(b))) {
      LinkValues<V, E, PIXELS>(k, call, row, block + n, 1, column, link_sums[n][0]);
    }
    typename V::Ints accumulators[1][PIXELS];
    LoadAccumulators<V, PIXELS>(k, call, row, column, tile, block + n, k.planes - 1, counts.value[0] + n * kLanes,
                                kStep, accumulators[0]);
    const float* others = k.terms > 1 ? sums[0] + n * kLanes : nullptr;
    b.lanes == kLanes ? Finish<V, true, 1>(k, row, column, link, block + n, 0, accumulators, others, kStep)
                      : Finish<V, false, 1>(k, row, column, link, block + n, 0, accumulators, others, kStep);
  }
}

// `tiles` tiles side by side from `column` on. What does not change from tile to tile is found once.
template <class V, class E, int PIXELS, int PANELS>
void LookupTiles(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block, size_t column,
                 size_t tiles) {
  constexpr size_t kStep = PanelCounts<V, PIXELS, PANELS>::kStep;
  const size_t blocks = Min(k.blocks[block].alike, PANELS * V::kPanelBlocks), end = column + tiles * PIXELS;
  const bool plain = CountsArePlain(k, row) && WholeBlocks(k, block, blocks) == blocks;
  if (BINARIZE_UNLIKELY(!plain)) {
    for (; column < end; column += PIXELS) LookupAnyTile<V, E, PIXELS, PANELS>(k, call, row, block, column);
    return;
  }
  alignas(64) float link_sums[PANELS * V::kPanelBlocks][PIXELS][kLanes];
  PanelCounts<V, PIXELS, PANELS> counts;
  const PanelTaps taps = FindPanelTaps<V, false>(k, call, row, block, 0, 0);
  TileLink<E> link = FindMapLink<E>(k, call, row, block, blocks, column, end - column);
  const bool sums_first = row.link != nullptr && link.map == nullptr;
  for (; column < end; column += PIXELS) {
    if (sums_first) link = FindTileLink<V, E, PIXELS>(k, call, row, block, blocks, column, link_sums[0][0]);
    FetchOutput<E, PIXELS, PANELS * V::kPanelBlocks>(k, row, block, column);
    LookUpTaps<V, false>(call, taps, column, counts);
    FinishPlain<V>(k, row, column, MakeTile<PIXELS>(k, row, column), link, block, blocks, counts.value[0], kStep);
    if (!sums_first) link.map += PIXELS * link.step;
  }
}

// The bits of a tile with one base, from its counts: sums are compared where they lie, 16 bits wide.
template <class V, int PIXELS, int PANELS>
BINARIZE_INLINE void WriteBitsOfCounts(const ConvConst& k, const ConvRow& row, size_t block, size_t column,
                                       size_t panels, const int32_t* base, const PanelCounts<V, PIXELS, PANELS>& counts) {
  constexpr size_t kPanelLanes = V::kPanelBlocks * kLanes;
  const size_t step = k.next_step;
  const int32_t* limits = k.bit_limits + block * kLanes;
  uint16_t* bits = row.next_bits + column * step + block;
  for (size_t plane = 0; plane < k.next_planes; ++plane, bits += k.words_out * 4, limits += k.block_count * kLanes) {
    for (size_t n = 0; n < panels; ++n) {
      const size_t lane = n * kPanelLanes;
      const typename V::CountLimits most = V::MakeCountLimits(base + block * kLanes + lane, limits + lane, k.counts_once);
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) V::StoreBelow(bits + m * step + n * V::kPanelBlocks, counts.value[m] + lane, most);
    }
  }
}

// A tile of rows that want bits alone.
template <class V, int PIXELS, int PANELS>
BINARIZE_INLINE void LookupBits(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block,
                                size_t column) {
  constexpr size_t kStep = PanelCounts<V, PIXELS, PANELS>::kStep;
  const size_t blocks = Min(k.blocks[block].alike, PANELS * V::kPanelBlocks);
  PanelCounts<V, PIXELS, PANELS> counts;
  CountPanels(k, call, row, block, column, 0, 0, counts);
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k, row, column, 0);
  size_t n = 0;
  if constexpr (V::kComparesCounts) {
    if (BINARIZE_LIKELY(k.counts_fit_int16 && tile.one_base)) {
      const size_t panels = WholeBlocks(k, block, blocks) / V::kPanelBlocks;
      WriteBitsOfCounts<V, PIXELS, PANELS>(k, row, block, column, panels, tile.base[0], counts);
      n = panels * V::kPanelBlocks;
    }
  }
  for (; n < blocks; ++n) {
    typename V::Ints accumulators[1][PIXELS];
    LoadAccumulators<V, PIXELS>(k, call, row, column, tile, block + n, 0, counts.value[0] + n * kLanes, kStep,
                                accumulators[0]);
    k.blocks[block + n].lanes == kLanes ? WriteBitsOfSums<V, true>(k, row, column, block + n, accumulators)
                                        : WriteBitsOfSums<V, false>(k, row, column, block + n, accumulators);
  }
}

template <class V, int PIXELS, int PANELS>
void LookupBitTiles(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t block, size_t column,
                    size_t tiles) {
  for (size_t end = column + tiles * PIXELS; column < end; column += PIXELS) {
    LookupBits<V, PIXELS, PANELS>(k, call, row, block, column);
  }
}

using LookupFunction = void (*)(const ConvConst&, const ConvCall&, const ConvRow&, size_t block, size_t column,
                                size_t tiles);

template <class V, class E, int PANELS>
struct LookupTileOf {
  template <int PIXELS>
  static constexpr LookupFunction Make() {
    constexpr int kPixels = PIXELS < V::kPanelPixels ? PIXELS : V::kPanelPixels;
    if constexpr (kHasStream<E>) {
      return LookupTiles<V, E, kPixels, PANELS>;
    } else {
      return LookupBitTiles<V, kPixels, PANELS>;
    }
  }
  static constexpr LookupFunction kByPixels[kMostPixels + 1] = {nullptr,   Make<1>(), Make<2>(), Make<3>(),
                                                                Make<4>(), Make<5>(), Make<6>(), Make<7>()};
};

// The width of the next of `left` tiles for `pixels` pixels: near-equal, and even where two pixels share tables.
template <class V>
BINARIZE_INLINE size_t NextWidth(size_t pixels, size_t left) {
  constexpr size_t kUnit = V::kSharesTables ? 2 : 1;
  static_assert(V::kPanelPixels % kUnit == 0, "a tile would be wider than the widest");
  return Min(pixels, (pixels + kUnit * left - 1) / (kUnit * left) * kUnit);
}

// Blocks [first, last) without masks; `first` starts a panel. Tiles of one width that are neighbours go together.
template <class V, class E>
BINARIZE_INLINE void LookupBlocks(const ConvConst& k, const ConvCall& call, const ConvRow& row, size_t first,
                                  size_t last) {
  constexpr size_t kMost = V::kPanelPixels;
  size_t left = (row.end - row.begin + kMost - 1) / kMost;
  for (size_t column = row.begin; column < row.end;) {
    const size_t width = NextWidth<V>(row.end - column, left);
    size_t tiles = 1, end = column + width;
    while (tiles < kStripTiles && end < row.end && NextWidth<V>(row.end - end, left - tiles) == width) {
      ++tiles, end += width;
    }
    for (size_t block = first, panels; block < last; block += panels * V::kPanelBlocks) {
      const size_t left_panels = (last - block + V::kPanelBlocks - 1) / V::kPanelBlocks;
      panels = left_panels >= V::kPanels ? V::kPanels : left_panels >= 2 ? 2 : 1;
      const LookupFunction function = panels == V::kPanels ? LookupTileOf<V, E, V::kPanels>::kByPixels[width]
                                      : panels == 2        ? LookupTileOf<V, E, 2>::kByPixels[width]
                                                           : LookupTileOf<V, E, 1>::kByPixels[width];
      function(k, call, row, block, column, tiles);
    }
    column = end;
    left -= tiles;
  }
}

// Alike blocks go by table, in batches whose weights stay in the L1; blocks with masks count words.
template <class V, class E>
void LookupConvElements(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  for (size_t first = work.first_block, last; first < work.last_block; first = last) {
    const Block& b = k.blocks[first];
    const bool masked = b.masks != kNoMask;
    const size_t panel_bytes = k.bases * k.kernel_h * k.kernel_w * b.span * kNibbles * V::kPanelBlocks * kLanes;
    const size_t panels = kWeightBytes / panel_bytes / V::kPanels * V::kPanels;
    const size_t batch = (panels == 0 ? V::kPanels : panels) * V::kPanelBlocks;
    last = Min(work.last_block, first + (masked ? 1 : Min(batch, b.alike)));
    for (const ConvRow* row = work.rows; row != work.rows + work.row_count; ++row) {
      masked ? ConvBlocks<V, E, false>(k, call, *row, first, last, row == work.rows)
             : LookupBlocks<V, E>(k, call, *row, first, last);
    }
  }
}

template <class V>
void LookupConv(const ConvConst& k, const ConvCall& call, const ConvWork& work) {
  if (work.rows[0].only_bits) return LookupConvElements<V, NoStream>(k, call, work);
  k.element == Element::kFloat16 ? LookupConvElements<V, Half>(k, call, work)
                                    : LookupConvElements<V, float>(k, call, work);
}

}  // namespace generic
}  // namespace binarize
