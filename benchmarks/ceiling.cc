// What the speed of the kernels is compared with: their inner steps with all operands in registers (the ceiling), and
// bare loops that count and end in floats and their signs, from bits to bits, with nothing around them (the limits).
// Layers that give bits alone need no floats: their kernels compare accumulators, and may pass these limits.
//
// Prints JSON: the clock by a chain of dependent additions, and for each instruction set of this machine
// multiply-accumulates per cycle of the steps, and of the loops by K, the input channels times the taps. A step is what
// the kernels of that set do (binarize/native/isa): xor, count, add of 16 x 32 bits; look up, add of one nibble of 64
// channels; or, for avx2, look up three nibbles of 32 channels for two pixels, add, take the pixels apart and add. There
// are loops for avx2 and avx512. Fails if one wrote other bits than plain code computes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int kSums = 12;     // independent chains: more than latency times throughput of any step
constexpr int kRounds = 2000;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double Fastest(F f) {
  double best = 1e9;
  for (int i = 0; i < 200; ++i) {
    const double start = Seconds();
    f();
    const double seconds = Seconds() - start;
    if (seconds < best) best = seconds;
  }
  return best;
}

// By adds that wait for each other. Registers, as newer cores add constants while they rename, several in a cycle.
double Hertz() {
  constexpr int kAdds = 8 * 20000;
  const double seconds = Fastest([] {
    uint64_t x = 1, y = 1;
    __asm__ volatile("" : "+r"(y));
    for (int i = 0; i < kAdds / 8; ++i) {
#if defined(__x86_64__)
      __asm__ volatile("add %1,%0\n add %1,%0\n add %1,%0\n add %1,%0\n add %1,%0\n add %1,%0\n add %1,%0\n add %1,%0" : "+r"(x) : "r"(y));
#elif defined(__aarch64__)
      __asm__ volatile("add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1\n add %0,%0,%1" : "+r"(x) : "r"(y));
#endif
    }
  });
  return kAdds / seconds;
}

// Of `f`, which does `macs`. The clock may change at any time, so the faster of the clocks before and after counts.
template <class F>
double MacsPerCycle(F f, double macs) {
  const double before = Hertz(), seconds = Fastest(f);
  return macs / (seconds * std::max(before, Hertz()));
}

const char* separator = "";

template <class F>
void ReportCeiling(const char* isa, double macs_per_step, F f) {
  std::printf("%s\"%s\": %.1f", separator, isa, MacsPerCycle(f, macs_per_step * kSums * kRounds));
  separator = ", ";
}

// ------------------------------------------------------------------------------------------------ registers alone

// STEP changes `sum` by `a` and `b`, opaque values in registers.
#define BINARIZE_CEILING(NAME, TARGET, VECTOR, CONSTRAINT, STEP)                            \
  __attribute__((target(TARGET), noinline)) void NAME() {                                   \
    VECTOR a, b, sums[kSums];                                                               \
    __asm__ volatile("" : "=" CONSTRAINT(a), "=" CONSTRAINT(b));                            \
    _Pragma("GCC unroll 16") for (VECTOR & sum : sums) __asm__ volatile("" : "=" CONSTRAINT(sum)); \
    for (int i = 0; i < kRounds; ++i) {                                                     \
      _Pragma("GCC unroll 16") for (VECTOR & sum : sums) {                                  \
        __asm__ volatile("" : "+" CONSTRAINT(a));                                           \
        STEP;                                                                               \
        __asm__ volatile("" : "+" CONSTRAINT(sum));                                         \
      }                                                                                     \
    }                                                                                       \
  }

#if defined(__x86_64__)
// Of two pixels that share a table. Both are added to one sum, as registers are few.
__attribute__((target("avx2"), always_inline)) inline __m256i LookUpThree(__m256i sum, __m256i& a, __m256i b) {
  __m256i both = _mm256_shuffle_epi8(a, b);
  _Pragma("GCC unroll 2") for (int i = 0; i < 2; ++i) {
    __asm__ volatile("" : "+x"(a), "+x"(both));
    both = _mm256_add_epi8(both, _mm256_shuffle_epi8(a, b));
  }
  sum = _mm256_add_epi8(sum, _mm256_and_si256(both, b));
  __asm__ volatile("" : "+x"(sum));
  return _mm256_add_epi16(sum, _mm256_mulhi_epu16(both, b));
}
BINARIZE_CEILING(Avx2, "avx2", __m256i, "x", sum = LookUpThree(sum, a, b))
BINARIZE_CEILING(Avx512Bw, "avx512f,avx512bw", __m512i, "v", sum = _mm512_add_epi8(sum, _mm512_shuffle_epi8(a, b)))
BINARIZE_CEILING(Avx512, "avx512f,avx512vpopcntdq", __m512i, "v",
                 sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(a, b))))
#elif defined(__aarch64__)
BINARIZE_CEILING(Neon, "arch=armv8-a", uint8x16_t, "w", sum = vaddq_u8(sum, vcntq_u8(veorq_u8(a, b))))
#endif

// ------------------------------------------------------------------------------------- counting with its epilogue
//
// A 1x1 convolution whose map, weights and outputs stay in the L1: count, make the sum a float, multiply and add
// (scale, bias), compare with a threshold, store the bits. The sum is K / 2 less the mismatches, half the sum of the
// products: exact until it is a float, as the op's is, so its offset cannot move into the bias. The best of tiles of
// several shapes counts. The number of words is known when compiling and there are few channels, so parameters, and
// weights of few words, may stay in registers from tile to tile; kernels have more around it. No proof that nothing is
// faster.

#if defined(__x86_64__)

#define BINARIZE_UNROLL _Pragma("GCC unroll 8")

constexpr int kMostPixels = 48, kMostChannels = 128, kMostWords = 32;

uint32_t map[kMostPixels * kMostWords];        // [pixel][word]
uint32_t weights[kMostChannels * kMostWords];  // [channel][word]
float scale[kMostChannels], bias[kMostChannels], threshold[kMostChannels];

// What a loop reads in place of the weights and parameters, in its own order, and the bits it writes: [pixel][channel].
alignas(64) uint8_t packed[kMostChannels * kMostWords * 8];
alignas(64) float packed_scale[kMostChannels], packed_bias[kMostChannels], packed_threshold[kMostChannels];
alignas(64) uint8_t bits[kMostPixels * kMostChannels / 8];

// The bits of one register. Volatile, else GCC gathers them in vectors first, which costs more than it saves.
template <class BITS>
inline void Store(int at, BITS above) {
  reinterpret_cast<volatile BITS*>(bits)[at] = above;
}

// A layer whose scales have both signs and whose outputs are ones about half the time.
void Draw() {
  std::fill(std::begin(bits), std::end(bits), 0);
  std::mt19937 draw;
  const auto draw_float = [&draw] { return static_cast<float>(static_cast<int32_t>(draw())) / 2147483648.0f; };
  for (uint32_t& word : map) word = static_cast<uint32_t>(draw());
  for (uint32_t& word : weights) word = static_cast<uint32_t>(draw());
  for (int c = 0; c < kMostChannels; ++c) {
    scale[c] = draw_float();
    bias[c] = draw_float();
    threshold[c] = draw_float();
  }
}

void Check(int words, int pixels, int channels) {
  for (int i = 0; i < pixels * channels; ++i) {
    const int p = i / channels, c = i % channels;
    int mismatches = 0;
    for (int w = 0; w < words; ++w) mismatches += __builtin_popcount(map[p * words + w] ^ weights[c * words + w]);
    const bool wanted = std::fma(static_cast<float>(16 * words - mismatches), scale[c], bias[c]) > threshold[c];
    if (wanted != ((bits[i / 8] >> i % 8 & 1) != 0)) {
      std::fprintf(stderr, "wrong bit: %d words, pixel %d, channel %d of %d\n", words, p, c, channels);
      std::exit(1);
    }
  }
}

// With popcounts: a register holds a word of 16 output channels, a "block". Every other word has its weights inverted
// and counts matches: those less the mismatches of the others are the sum, and no addition of K / 2 is needed.
template <int PIXELS, int BLOCKS, int WORDS>
struct Count {
  static constexpr int kPixels = PIXELS, kChannels = 16 * BLOCKS, kWords = WORDS;
  static_assert(WORDS % 2 == 0, "");

  static void Pack() {  // [block][word][lane]
    for (int i = 0; i < kChannels * WORDS; ++i) {
      const int block = i / (16 * WORDS), word = i / 16 % WORDS, lane = i % 16;
      const uint32_t own = weights[(16 * block + lane) * WORDS + word] ^ (word % 2 == 0 ? ~0u : 0u);
      std::memcpy(packed + 4 * i, &own, 4);
    }
    std::copy(scale, scale + kChannels, packed_scale);
    std::copy(bias, bias + kChannels, packed_bias);
    std::copy(threshold, threshold + kChannels, packed_threshold);
  }

  // Word `i` of a tile, added or subtracted; the first is the sum.
  template <bool FIRST, bool MATCHES>
  __attribute__((target("avx512f,avx512vpopcntdq"), always_inline)) static void Step(const uint32_t* tile, int i,
                                                                                      __m512i (&sums)[PIXELS][BLOCKS]) {
    __m512i words[BLOCKS];
    BINARIZE_UNROLL for (int n = 0; n < BLOCKS; ++n) words[n] = _mm512_load_si512(packed + (n * WORDS + i) * 64);
    BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
      const __m512i own = _mm512_set1_epi32(static_cast<int>(tile[m * WORDS + i]));
      BINARIZE_UNROLL for (int n = 0; n < BLOCKS; ++n) {
        const __m512i ones = _mm512_popcnt_epi32(_mm512_xor_si512(own, words[n]));
        sums[m][n] = FIRST     ? ones
                     : MATCHES ? _mm512_add_epi32(sums[m][n], ones)
                               : _mm512_sub_epi32(sums[m][n], ones);
        __asm__("" : "+v"(sums[m][n]));  // else sums are moved between steps and spilled
      }
    }
  }

  __attribute__((target("avx512f,avx512vpopcntdq"), noinline)) static void Run(int pixels) {
    for (int first = 0; first < pixels; first += PIXELS) {
      const uint32_t* tile = map + first * WORDS;
      __m512i sums[PIXELS][BLOCKS];
      Step<true, true>(tile, 0, sums);
      Step<false, false>(tile, 1, sums);
      for (int i = 2; i < WORDS; i += 2) {
        Step<false, true>(tile, i, sums);
        Step<false, false>(tile, i + 1, sums);
      }
      BINARIZE_UNROLL for (int n = 0; n < BLOCKS; ++n) {
        const __m512 s = _mm512_load_ps(packed_scale + 16 * n), b = _mm512_load_ps(packed_bias + 16 * n);
        const __m512 t = _mm512_load_ps(packed_threshold + 16 * n);
        BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
          const __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][n]), s, b);
          Store<uint16_t>((first + m) * BLOCKS + n, _mm512_cmp_ps_mask(x, t, _CMP_GT_OQ));
        }
      }
    }
  }
};

// Of byte b, two less the mismatches of its low and of its high nibble with each nibble.
alignas(64) int8_t tables[256][2][16];

// By table: a register holds a nibble of 32 output channels, a "panel", in bytes, and the map finds the tables.
template <int PIXELS, int PANELS, int WORDS>
struct LookUp {
  static constexpr int kPixels = PIXELS, kChannels = 32 * PANELS, kWords = WORDS;
  static constexpr int kBytes = 4 * WORDS;          // of the map, per pixel
  static constexpr int kFlushes = (WORDS + 6) / 7;  // to 16 bits: a word adds at most 16 to a byte

  static void Pack() {
    for (int i = 0; i < 2 * kBytes * kChannels; ++i) {  // [panel][nibble][lane]
      const int panel = i / (32 * 2 * kBytes), nibble = i / 32 % (2 * kBytes), lane = i % 32;
      packed[i] = weights[(32 * panel + lane) * WORDS + nibble / 8] >> 4 * (nibble % 8) & 15;
    }
    for (int c = 0; c < kChannels; ++c) {  // [panel][set][lane]: every fourth channel is in one set of 8
      const int at = c / 32 * 32 + c % 4 * 8 + c % 32 / 4;
      packed_scale[at] = scale[c];
      packed_bias[at] = bias[c];
      packed_threshold[at] = threshold[c];
    }
    for (unsigned i = 0; i < sizeof tables; ++i) {
      const unsigned byte = i / 32, nibble = byte >> (i / 16 % 2 * 4) & 15;
      tables[byte][i / 16 % 2][i % 16] = static_cast<int8_t>(2 - __builtin_popcount(nibble ^ i % 16));
    }
  }

  // The bits of the pixels from `first` on, of sums of even and of odd channels in 16 bits.
  __attribute__((target("avx2,fma"), always_inline)) static void Finish(int first,
                                                                        const __m256i (&counts)[PIXELS][PANELS][2]) {
    BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) {
      BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
        __m256i above[4];
        BINARIZE_UNROLL for (int set = 0; set < 4; ++set) {
          __m256i own = counts[m][n][set % 2];
          own = set < 2 ? _mm256_madd_epi16(own, _mm256_set1_epi32(1)) : _mm256_srai_epi32(own, 16);
          const int at = 32 * n + 8 * set;
          const __m256 s = _mm256_load_ps(packed_scale + at), b = _mm256_load_ps(packed_bias + at);
          const __m256 x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(own), s, b);
          above[set] = _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_load_ps(packed_threshold + at), _CMP_GT_OQ));
        }
        const __m256i even = _mm256_blend_epi16(above[0], above[2], 0xaa);
        const __m256i odd = _mm256_blend_epi16(above[1], above[3], 0xaa);
        const __m256i all = _mm256_blendv_epi8(odd, even, _mm256_set1_epi16(255));
        Store<uint32_t>((first + m) * PANELS + n, static_cast<uint32_t>(_mm256_movemask_epi8(all)));
      }
    }
  }

  __attribute__((target("avx2,fma"), noinline)) static void Run(int pixels) {
    for (int first = 0; first < pixels; first += PIXELS) {
      const uint8_t* tile = reinterpret_cast<const uint8_t*>(map) + first * kBytes;
      const uint8_t* nibbles = packed;
      __m256i counts[PIXELS][PANELS][2];  // of even and of odd channels, in 16 bits
      for (int flush = 0, i = 0; flush < kFlushes; ++flush) {
        __m256i sums[PIXELS][PANELS];
        BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
          BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) sums[m][n] = _mm256_setzero_si256();
        }
        for (const int end = kBytes * (flush + 1) / kFlushes; i < end; ++i) {
          BINARIZE_UNROLL for (int half = 0; half < 2; ++half, nibbles += 32) {
            __m256i own[PIXELS];
            BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
              const void* table = tables[tile[m * kBytes + i]][half];
              own[m] = _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(table)));
              __asm__("" : "+x"(own[m]));
            }
            BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) {
              const void* panel = nibbles + n * 2 * kBytes * 32;
              __m256i w = _mm256_load_si256(static_cast<const __m256i*>(panel));
              __asm__("" : "+x"(w));
              BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
                sums[m][n] = _mm256_add_epi8(sums[m][n], _mm256_shuffle_epi8(own[m], w));
                __asm__("" : "+x"(sums[m][n]));
              }
            }
          }
        }
        BINARIZE_UNROLL for (int m = 0; m < PIXELS; ++m) {
          BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) {
            const __m256i even = _mm256_maddubs_epi16(_mm256_set1_epi16(1), sums[m][n]);
            const __m256i odd = _mm256_srai_epi16(sums[m][n], 8);
            counts[m][n][0] = flush == 0 ? even : _mm256_add_epi16(counts[m][n][0], even);
            counts[m][n][1] = flush == 0 ? odd : _mm256_add_epi16(counts[m][n][1], odd);
          }
        }
      }
      Finish(first, counts);
    }
  }
};

// The same with two pixels to a table.
alignas(64) uint8_t pair_tables[256][16];

template <int PANELS, int WORDS>
struct LookUpTwo : LookUp<2, PANELS, WORDS> {
  using One = LookUp<2, PANELS, WORDS>;
  static constexpr int kFlushes = (WORDS + 6) / 7;

  static void Pack() {
    One::Pack();
    for (unsigned i = 0; i < sizeof pair_tables; ++i) {
      const unsigned byte = i / 16, low = __builtin_popcount((byte & 15) ^ i % 16);
      pair_tables[byte][i % 16] = static_cast<uint8_t>(low + 16 * __builtin_popcount((byte >> 4) ^ i % 16));
    }
  }

  // Nibble `nibble` of a word of two pixels, those of even numbers in the lower half of `pairs`.
  __attribute__((target("avx2"), always_inline)) static __m256i FindTable(uint64_t pairs, int nibble) {
    const int from = 8 * (nibble / 2 + 4 * (nibble % 2));
    const size_t at = (from == 0 ? pairs << 4 : pairs >> (from - 4)) & 0xFF0;
    __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(pair_tables[0] + at)));
    __asm__("" : "+x"(table));
    return table;
  }

  __attribute__((target("avx2,fma"), noinline)) static void Run(int pixels) {
    const __m256i low_byte = _mm256_set1_epi16(255);
    for (int first = 0; first < pixels; first += 2) {
      const uint32_t* tile = map + first * WORDS;
      const uint8_t* nibbles = packed;
      __m256i counts[2][PANELS][2];
      for (int flush = 0, i = 0; flush < kFlushes; ++flush) {
        __m256i low[PANELS], high[PANELS], both[PANELS];
        BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) low[n] = high[n] = _mm256_setzero_si256();
        for (const int end = WORDS * (flush + 1) / kFlushes; i < end; ++i) {
          const uint32_t a = tile[i], b = tile[WORDS + i], mask = 0x0F0F0F0F;
          const uint32_t even = (a & mask) | (b << 4 & ~mask), odd = (a >> 4 & mask) | (b & ~mask);
          const uint64_t pairs = even | static_cast<uint64_t>(odd) << 32;
          BINARIZE_UNROLL for (int nibble = 0; nibble < 8; ++nibble, nibbles += 32) {
            const __m256i table = FindTable(pairs, nibble);
            BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) {
              const void* panel = nibbles + n * 8 * WORDS * 32;
              const __m256i own = _mm256_shuffle_epi8(table, _mm256_load_si256(static_cast<const __m256i*>(panel)));
              both[n] = nibble % 3 == 0 ? own : _mm256_add_epi8(both[n], own);
              __asm__ volatile("" : "+x"(both[n]));
              if (nibble % 3 != 2 && nibble != 7) continue;
              low[n] = _mm256_add_epi8(low[n], _mm256_and_si256(both[n], _mm256_set1_epi8(15)));
              high[n] = _mm256_add_epi16(high[n], _mm256_mulhi_epu16(both[n], _mm256_set1_epi16(1 << 12)));
              __asm__ volatile("" : "+x"(low[n]), "+x"(high[n]));
            }
          }
        }
        BINARIZE_UNROLL for (int n = 0; n < PANELS; ++n) {
          const __m256i upper = _mm256_srli_epi16(_mm256_andnot_si256(low_byte, low[n]), 4);
          const __m256i of[2] = {low[n], _mm256_sub_epi16(high[n], upper)};
          BINARIZE_UNROLL for (int m = 0; m < 2; ++m) {
            const __m256i start = _mm256_set1_epi16(16 * WORDS);
            const __m256i even = _mm256_and_si256(of[m], low_byte), odd = _mm256_srli_epi16(of[m], 8);
            counts[m][n][0] = _mm256_sub_epi16(flush == 0 ? start : counts[m][n][0], even);
            counts[m][n][1] = _mm256_sub_epi16(flush == 0 ? start : counts[m][n][1], odd);
          }
        }
      }
      One::Finish(first, counts);
    }
  }
};

template <class LOOP>
double LoopMacsPerCycle() {
  static_assert(kMostPixels % LOOP::kPixels == 0 && LOOP::kChannels <= kMostChannels && LOOP::kWords <= kMostWords, "");
  constexpr int kTimes = 512 / LOOP::kWords;  // long against the steps of the clock
  Draw();
  LOOP::Pack();
  const double macs = 32.0 * LOOP::kWords * LOOP::kChannels * kMostPixels * kTimes;
  const auto run = [] {
    for (int i = 0; i < kTimes; ++i) LOOP::Run(kMostPixels);
  };
  const double speed = MacsPerCycle(run, macs);
  Check(LOOP::kWords, kMostPixels, LOOP::kChannels);
  return speed;
}

struct CountShapes {
  template <int WORDS>
  static double Best() {
    return std::max({LoopMacsPerCycle<Count<6, 4, WORDS>>(), LoopMacsPerCycle<Count<4, 4, WORDS>>(),
                     LoopMacsPerCycle<Count<2, 4, WORDS>>(), LoopMacsPerCycle<Count<8, 2, WORDS>>()});
  }
};

// The narrow one is also for L1 of 32 KiB, where 8 go to tables and K = 1024 takes 8 for every 32 channels.
struct LookUpShapes {
  template <int WORDS>
  static double Best() {
    return std::max({LoopMacsPerCycle<LookUp<2, 4, WORDS>>(), LoopMacsPerCycle<LookUp<3, 3, WORDS>>(),
                     LoopMacsPerCycle<LookUp<4, 2, WORDS>>(), LoopMacsPerCycle<LookUpTwo<4, WORDS>>(),
                     LoopMacsPerCycle<LookUpTwo<3, WORDS>>(), LoopMacsPerCycle<LookUpTwo<2, WORDS>>()});
  }
};

template <class SHAPES, int WORDS>
void ReportLimit() {
  std::printf("%s\"%d\": %.1f", separator, 32 * WORDS, SHAPES::template Best<WORDS>());
  separator = ", ";
}

template <class SHAPES>
void ReportLimits(const char* isa) {
  std::printf("%s\"%s\": {", separator, isa);
  separator = "";
  ReportLimit<SHAPES, 2>();
  ReportLimit<SHAPES, 4>();
  ReportLimit<SHAPES, 8>();
  ReportLimit<SHAPES, 16>();
  ReportLimit<SHAPES, 18>();
  ReportLimit<SHAPES, 32>();
  std::printf("}");
}

#endif  // __x86_64__

}  // namespace

int main() {
  std::printf("{\"ghz\": %.3f, \"mac_per_cycle\": {", Hertz() / 1e9);
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512vpopcntdq");
  if (avx2) ReportCeiling("avx2", 3 * 2 * 32 * 4, Avx2);
  if (__builtin_cpu_supports("avx512bw")) ReportCeiling("avx512bw", 64 * 4, Avx512Bw);
  if (avx512) ReportCeiling("avx512", 16 * 32, Avx512);
#elif defined(__aarch64__)
  ReportCeiling("neon", 4 * 32, Neon);
#endif
  std::printf("}, \"limits\": {");
  separator = "";
#if defined(__x86_64__)
  if (avx2) ReportLimits<LookUpShapes>("avx2");
  if (avx512) ReportLimits<CountShapes>("avx512");
#endif
  std::printf("}}\n");
}
