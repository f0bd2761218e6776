// NEON kernels (aarch64): four q registers hold the sixteen lanes of a block; cnt counts the ones of bytes.
//
// No std headers, as in every file of isa/ (see core/kernels.h).
#include <arm_neon.h>

#include "isa/generic/conv.h"
#include "isa/generic/depthwise.h"
#include "isa/generic/gate.h"
#include "isa/generic/int8_conv.h"
#include "isa/generic/pack.h"
#include "isa/generic/pointwise.h"

namespace binarize {
namespace {

struct Neon {
  struct Floats {
    float32x4_t q[4];
  };
  struct Ints {
    uint32x4_t q[4];
  };

  // 4 pixels x 1 block: 16 counters, 4 weights and the broadcast words of 32 registers.
  static constexpr bool kFewRegisters = false;
  static constexpr int kLinkSums = 7;
  static constexpr bool kSumsInEpilogue = false;
  static constexpr int kPixels = 4, kWidePixels = 4, kWideBlocks = 1;

  template <class F>
  BINARIZE_INLINE Floats Each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  template <class F>
  BINARIZE_INLINE Ints EachInt(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  BINARIZE_INLINE Floats Zero() { return Set(0.0f); }
  BINARIZE_INLINE Floats Set(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {{v, v, v, v}};
  }
  BINARIZE_INLINE Floats Load(const float* p) {
    return Each([p](int i) { return vld1q_f32(p + 4 * i); });
  }
  BINARIZE_INLINE Floats Load(const Half* p) {
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(p);
    return Each([bits](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits + 4 * i))); });
  }
  template <class E>
  BINARIZE_INLINE Floats LoadFirst(const E* p, size_t n) {
    return n == generic::kLanes ? Load(p) : LoadTwo(p, n, p, n);
  }
  template <class E>
  BINARIZE_INLINE Floats LoadTwo(const E* p, size_t n, const E* q, size_t end) {
    E copy[generic::kLanes] = {};
    for (size_t i = 0; i < n; ++i) copy[i] = p[i];
    for (size_t i = n; i < end; ++i) copy[i] = q[i - n];
    return Load(copy);
  }
  BINARIZE_INLINE void Store(float* p, Floats x) {
    BINARIZE_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.q[i]);
  }
  BINARIZE_INLINE void Store(Half* p, Floats x) {
    uint16_t* bits = reinterpret_cast<uint16_t*>(p);
    BINARIZE_UNROLL
    for (int i = 0; i < 4; ++i) vst1_u16(bits + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.q[i])));
  }
  template <class E>
  BINARIZE_INLINE void StoreFirst(E* p, Floats x, size_t n) {
    E copy[generic::kLanes];
    Store(copy, x);
    for (size_t i = 0; i < n; ++i) p[i] = copy[i];
  }
  BINARIZE_INLINE Floats Add(Floats a, Floats b) {
    return Each([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Floats Mul(Floats a, Floats b) {
    return Each([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
  }
  // fmax would make a NaN of one NaN; here b wins unless a is greater, as the contract says.
  BINARIZE_INLINE Floats Max(Floats a, Floats b) {
    return Each([&](int i) { return vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Floats Min(Floats a, Floats b) {
    return Each([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return Each([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Floats Leak(Floats t, Floats slope) {
    return Each([&](int i) { return vbslq_f32(vcgtzq_f32(t.q[i]), t.q[i], vmulq_f32(slope.q[i], t.q[i])); });
  }
  // Bit i: whether lane i is all ones and not all zeros.
  BINARIZE_INLINE unsigned OnesOf(Ints lanes) {
    const uint32_t weights[4] = {1, 2, 4, 8};
    const uint32x4_t bit = vld1q_u32(weights);
    uint32x4_t sum = vdupq_n_u32(0);
    BINARIZE_UNROLL
    for (int i = 3; i >= 0; --i) sum = vorrq_u32(vshlq_n_u32(sum, 4), vandq_u32(lanes.q[i], bit));
    return vaddvq_u32(sum);
  }
  BINARIZE_INLINE unsigned Above(Floats a, Floats b) {
    return OnesOf(EachInt([&](int i) { return vcgtq_f32(a.q[i], b.q[i]); }));
  }
  BINARIZE_INLINE unsigned Above(Ints a, Ints b) {
    return OnesOf(EachInt([&](int i) {
      return vcgtq_s32(vreinterpretq_s32_u32(a.q[i]), vreinterpretq_s32_u32(b.q[i]));
    }));
  }
  BINARIZE_INLINE Floats ToFloats(Ints x) {
    return Each([&](int i) { return vcvtq_f32_s32(vreinterpretq_s32_u32(x.q[i])); });
  }

  BINARIZE_INLINE Ints ZeroInts() {
    return EachInt([](int) { return vdupq_n_u32(0); });
  }
  BINARIZE_INLINE Ints LoadInts(const void* p) {
    const uint32_t* at = static_cast<const uint32_t*>(p);
    return EachInt([at](int i) { return vld1q_u32(at + 4 * i); });
  }
  BINARIZE_INLINE Ints Broadcast(const uint32_t* p) {
    const uint32x4_t word = vdupq_n_u32(*p);
    return {{word, word, word, word}};
  }
  BINARIZE_INLINE Ints AddInts(Ints a, Ints b) {
    return EachInt([&](int i) { return vaddq_u32(a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Ints SubInts(Ints a, Ints b) {
    return EachInt([&](int i) { return vsubq_u32(a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Ints MaxInts(Ints a, Ints b) {
    return EachInt([&](int i) {
      return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a.q[i]), vreinterpretq_s32_u32(b.q[i])));
    });
  }
  BINARIZE_INLINE Ints MinInts(Ints a, Ints b) {
    return EachInt([&](int i) {
      return vreinterpretq_u32_s32(vminq_s32(vreinterpretq_s32_u32(a.q[i]), vreinterpretq_s32_u32(b.q[i])));
    });
  }
  BINARIZE_INLINE Ints Choose(Floats a, Floats b, Ints x, Ints y) {
    return EachInt([&](int i) { return vbslq_u32(vcgtq_f32(a.q[i], b.q[i]), x.q[i], y.q[i]); });
  }
  BINARIZE_INLINE Ints Round(Floats x) {
    return EachInt([&](int i) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(x.q[i])); });
  }
  BINARIZE_INLINE void StoreInts(void* p, Ints x) {
    uint32_t* at = static_cast<uint32_t*>(p);
    BINARIZE_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_u32(at + 4 * i, x.q[i]);
  }
  BINARIZE_INLINE void StoreTaps(uint8_t* p, Ints x) {
    const uint16x8_t low = vcombine_u16(vmovn_u32(x.q[0]), vmovn_u32(x.q[1]));
    const uint16x8_t high = vcombine_u16(vmovn_u32(x.q[2]), vmovn_u32(x.q[3]));
    vst1q_u8(p, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
  }
  BINARIZE_INLINE Ints LoadBytes(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return {{vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)), vmovl_u16(vget_low_u16(high)),
             vmovl_u16(vget_high_u16(high))}};
  }
  BINARIZE_INLINE Ints Xor(Ints a, Ints b) {
    return EachInt([&](int i) { return veorq_u32(a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Ints And(Ints a, Ints b) {
    return EachInt([&](int i) { return vandq_u32(a.q[i], b.q[i]); });
  }
  BINARIZE_INLINE Ints XorAnd(Ints a, Ints b, Ints mask) { return And(Xor(a, b), mask); }

  // A product of a byte and a signed byte fits int16.
  using Tap = uint8_t;
  static constexpr int kDotPixels = 3, kDotBlocks = 1;
  static constexpr bool kStoresTriples = false;
  static constexpr bool kUnrollsDots = false;
  BINARIZE_INLINE Ints Dot(Ints sum, Ints a, Ints w) {
    return EachInt([&](int i) {
      const uint8x16_t bytes = vreinterpretq_u8_u32(a.q[i]);
      const int8x16_t signs = vreinterpretq_s8_u32(w.q[i]);
      const int16x8_t low = vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vmovl_s8(vget_low_s8(signs)));
      const int16x8_t high =
          vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes))), vmovl_s8(vget_high_s8(signs)));
      const int32x4_t products = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
      return vaddq_u32(sum.q[i], vreinterpretq_u32_s32(products));
    });
  }

  // Counters of bytes: a step adds at most 8.
  struct Counter {
    uint8x16_t q[4];
  };
  static constexpr size_t kCounterSteps = 31;
  BINARIZE_INLINE Counter ZeroCounter() {
    const uint8x16_t zero = vdupq_n_u8(0);
    return {{zero, zero, zero, zero}};
  }
  template <class T>
  BINARIZE_INLINE void Pin(T& c) { __asm__ volatile("" : "+w"(c.q[0]), "+w"(c.q[1]), "+w"(c.q[2]), "+w"(c.q[3])); }
  BINARIZE_INLINE Counter Count(Counter c, Ints x) {
    BINARIZE_UNROLL
    for (int i = 0; i < 4; ++i) c.q[i] = vaddq_u8(c.q[i], vcntq_u8(vreinterpretq_u8_u32(x.q[i])));
    return c;
  }
  BINARIZE_INLINE Ints Counts(Counter c) {
    return EachInt([&](int i) { return vpaddlq_u16(vpaddlq_u8(c.q[i])); });
  }

  using Words = uint64x2_t;
  static constexpr size_t kWords = 2;
  BINARIZE_INLINE Words ZeroWords() { return vdupq_n_u64(0); }
  // Activations are read through uint32 pointers and may start at any word.
  BINARIZE_INLINE Words LoadWords(const void* p) {
    return vreinterpretq_u64_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  BINARIZE_INLINE Words LoadFirstWords(const void* p, size_t n) {
    if (n == kWords) return LoadWords(p);
    return vcombine_u64(vreinterpret_u64_u8(vld1_u8(static_cast<const uint8_t*>(p))), vdup_n_u64(0));
  }
  BINARIZE_INLINE void StoreWords(void* p, Words x) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_u64(x)); }
  BINARIZE_INLINE Words XorWords(Words a, Words b) { return veorq_u64(a, b); }
  BINARIZE_INLINE Words AndWords(Words a, Words b) { return vandq_u64(a, b); }
  BINARIZE_INLINE Words Parity(Words a, Words b, Words c) { return veorq_u64(veorq_u64(a, b), c); }
  BINARIZE_INLINE Words Majority(Words a, Words b, Words c) { return vbslq_u64(veorq_u64(a, b), c, a); }

  // 16 bits of a plane become bytes with or without the plane's weight.
  template <int PLANES>
  BINARIZE_INLINE void Spread(const uint64_t* planes, size_t step, uint8_t* doubled) {
    const uint8_t bit_of_lane[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t own_bit = vld1q_u8(bit_of_lane);
    BINARIZE_UNROLL
    for (int n = 0; n < 4; ++n) {
      uint8x16_t bytes = vdupq_n_u8(0);
      BINARIZE_UNROLL
      for (int p = 0; p < PLANES; ++p) {
        const uint64_t word = planes[p * step] >> (16 * n);
        const uint8x16_t bits =
            vcombine_u8(vdup_n_u8(static_cast<uint8_t>(word)), vdup_n_u8(static_cast<uint8_t>(word >> 8)));
        bytes = vorrq_u8(bytes, vandq_u8(vtstq_u8(bits, own_bit), vdupq_n_u8(static_cast<uint8_t>(2 << p))));
      }
      vst1q_u8(doubled + 16 * n, bytes);
    }
  }
};

}  // namespace

const Kernels kNeonKernels = {0, 4, 4, generic::Pack<Neon>, generic::Conv<Neon>, generic::Depthwise<Neon>,
  generic::Activate<Neon>, generic::MaxPool<Neon>, generic::AveragePool<Neon>,
  generic::RowSums<Neon>, generic::Project<Neon>,
  generic::Quantize<Neon>, generic::Int8Sums<Neon>, generic::Int8Finish<Neon>};

}  // namespace binarize
