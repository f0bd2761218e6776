// What the inner steps of the kernels reach with all operands in registers: the ceiling their speed is compared with.
//
// Prints JSON: the clock by a chain of dependent additions, and multiply-accumulates per cycle for each instruction set
// of this machine. A step is what the kernels of that set do (binarize/native/isa): xor, count, add of 16 x 32 bits; or
// look up, add of one nibble of 32 or 64 channels.
#include <chrono>
#include <cstdint>
#include <cstdio>

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

double Hertz() {
  constexpr int kAdds = 8 * 20000;
  const double seconds = Fastest([] {
    uint64_t x = 1;
    for (int i = 0; i < kAdds / 8; ++i) {
#if defined(__x86_64__)
      __asm__ volatile("add $1,%0\n add $1,%0\n add $1,%0\n add $1,%0\n add $1,%0\n add $1,%0\n add $1,%0\n add $1,%0" : "+r"(x));
#elif defined(__aarch64__)
      __asm__ volatile("add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1\n add %0,%0,#1" : "+r"(x));
#endif
    }
  });
  return kAdds / seconds;
}

bool first = true;

void Report(const char* isa, double macs_per_step, double seconds, double hertz) {
  std::printf("%s\"%s\": %.1f", first ? "" : ", ", isa, macs_per_step * kSums * kRounds / (seconds * hertz));
  first = false;
}

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
BINARIZE_CEILING(Avx2, "avx2", __m256i, "x", sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(a, b)))
BINARIZE_CEILING(Avx512Bw, "avx512f,avx512bw", __m512i, "v", sum = _mm512_add_epi8(sum, _mm512_shuffle_epi8(a, b)))
BINARIZE_CEILING(Avx512, "avx512f,avx512vpopcntdq", __m512i, "v",
                 sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(a, b))))
#elif defined(__aarch64__)
BINARIZE_CEILING(Neon, "arch=armv8-a", uint8x16_t, "w", sum = vaddq_u8(sum, vcntq_u8(veorq_u8(a, b))))
#endif

}  // namespace

int main() {
  const double hertz = Hertz();
  std::printf("{\"ghz\": %.3f, \"mac_per_cycle\": {", hertz / 1e9);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) Report("avx2", 32 * 4, Fastest(Avx2), hertz);
  if (__builtin_cpu_supports("avx512bw")) Report("avx512bw", 64 * 4, Fastest(Avx512Bw), hertz);
  if (__builtin_cpu_supports("avx512vpopcntdq")) Report("avx512", 16 * 32, Fastest(Avx512), hertz);
#elif defined(__aarch64__)
  Report("neon", 4 * 32, Fastest(Neon), hertz);
#endif
  std::printf("}}\n");
}
