// The int8 convolution of an image: docs/ops.md, "Int8Conv2d". Four taps of a row of the kernel are one lane's step, or two
// where an instruction set multiplies no bytes and V::Tap is an int16_t. The channels of a pixel lie side by side, so that a
// row of the kernel is one run of taps and fills its steps.
#pragma once

#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

constexpr size_t kStepBytes = 4;  // of a lane

// What floats become; see QuantizeJob.
template <class V>
struct Quantizer {
  typename V::Floats factor, low, high;
  uint32_t zero;

  BINARIZE_INLINE Quantizer Of(const QuantizeJob& job) {
    return {V::Set(job.factor), V::Set(static_cast<float>(-job.zero_point)),
            V::Set(static_cast<float>(255 - job.zero_point)), static_cast<uint32_t>(job.zero_point)};
  }
  BINARIZE_INLINE typename V::Ints Taps(const Quantizer& own, typename V::Floats x) {
    const typename V::Floats clamped = V::Min(V::Max(V::Mul(x, own.factor), own.low), own.high);
    return V::AddInts(V::Round(clamped), V::Broadcast(&own.zero));
  }
};

template <class V>
void Quantize(const QuantizeJob& job) {
  const Quantizer<V> quantizer = Quantizer<V>::Of(job);
  typename V::Tap* to = static_cast<typename V::Tap*>(job.q);
  const size_t step = job.channels;  // a copy, as stores might change `job` for all the compiler knows
  size_t done = 0;
  if constexpr (V::kStoresTriples) {
    for (; job.channels == 3 && done + kLanes <= job.pixels; done += kLanes) {
      const float* x = job.x + done;
      V::StoreTriples(to + 3 * done, Quantizer<V>::Taps(quantizer, V::Load(x)),
                      Quantizer<V>::Taps(quantizer, V::Load(x + job.channel_step)),
                      Quantizer<V>::Taps(quantizer, V::Load(x + 2 * job.channel_step)));
    }
  }
  for (size_t c = 0; c < job.channels; ++c) {
    for (size_t i = done; i < job.pixels; i += kLanes) {
      const size_t lanes = Min(kLanes, job.pixels - i);
      const float* x = job.x + c * job.channel_step + i;
      typename V::Tap* own = to + i * step + c;
      const typename V::Ints q = Quantizer<V>::Taps(quantizer, lanes == kLanes ? V::Load(x) : V::LoadFirst(x, lanes));
      if (step == 1 && lanes == kLanes) {
        V::StoreTaps(own, q);
        continue;
      }
      typename V::Tap taps[kLanes];
      V::StoreTaps(taps, q);
      for (size_t lane = 0; lane < lanes; ++lane) own[lane * step] = taps[lane];
    }
  }
}

// One step of PIXELS pixels `pixel_step` apart and BLOCKS blocks whose weights are `block_step` bytes apart.
template <class V, int PIXELS, int BLOCKS>
BINARIZE_INLINE void DotStep(const typename V::Tap* map, size_t pixel_step, const char* weights, size_t block_step,
                             typename V::Ints (&sums)[PIXELS][BLOCKS]) {
  typename V::Ints w[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) w[n] = V::LoadInts(weights + n * block_step), V::Pin(w[n]);
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    uint32_t taps;  // at any address
    __builtin_memcpy(&taps, map + m * pixel_step, sizeof taps);
    const typename V::Ints a = V::Broadcast(&taps);
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      sums[m][n] = V::Dot(sums[m][n], a, w[n]);
      if constexpr (V::kUnrollsDots) V::Pin(sums[m][n]);  // else GCC multiplies first and spills the products
    }
  }
}

// STEPS: of a row of the kernel, where they are few and known, else 0.
template <class V, int PIXELS, int BLOCKS, int STEPS>
BINARIZE_INLINE void SumsTile(const Int8Const& k, const Int8SumsJob& job, size_t block, size_t column) {
  typename V::Ints sums[PIXELS][BLOCKS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) sums[m][n] = V::ZeroInts();
  }
  constexpr size_t kTaps = kStepBytes / sizeof(typename V::Tap), kStep = kLanes * kStepBytes;
  const size_t steps = STEPS != 0 ? STEPS : k.steps, block_step = k.kernel_h * steps * kStep;
  const char* weights = static_cast<const char*>(k.weights) + block * block_step;
  const typename V::Tap* row = static_cast<const typename V::Tap*>(job.map) + column * job.pixel_step;
  for (size_t r = 0; r < k.kernel_h; ++r, row += job.row_step) {
    if constexpr (STEPS != 0) {
      BINARIZE_UNROLL
      for (int step = 0; step < STEPS; ++step, weights += kStep) {
        DotStep<V, PIXELS, BLOCKS>(row + step * kTaps, job.pixel_step, weights, block_step, sums);
      }
    } else {
      for (size_t step = 0; step < steps; ++step, weights += kStep) {
        DotStep<V, PIXELS, BLOCKS>(row + step * kTaps, job.pixel_step, weights, block_step, sums);
      }
    }
  }
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    int32_t* to = job.sums + ((column + m) * k.epilogue.block_count + block) * kLanes;
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) V::StoreInts(to + n * kLanes, sums[m][n]);
  }
}

// BLOCKS blocks of all pixels; the last tile overlaps the one before it.
template <class V, int BLOCKS, int STEPS>
void SumsOfSteps(const Int8Const& k, const Int8SumsJob& job, size_t block) {
  constexpr int kPixels = V::kDotPixels;
  size_t column = 0;
  for (; column + kPixels <= job.pixels; column += kPixels) SumsTile<V, kPixels, BLOCKS, STEPS>(k, job, block, column);
  if (column == job.pixels) return;
  if (job.pixels >= kPixels) return SumsTile<V, kPixels, BLOCKS, STEPS>(k, job, block, job.pixels - kPixels);
  for (; column < job.pixels; ++column) SumsTile<V, 1, BLOCKS, STEPS>(k, job, block, column);
}

template <class V, int BLOCKS>
void SumsOfBlocks(const Int8Const& k, const Int8SumsJob& job, size_t block) {
  if constexpr (V::kUnrollsDots) {  // where a loop's own instructions weigh more
    if (k.steps == 5) return SumsOfSteps<V, BLOCKS, 5>(k, job, block);    // 3 columns of 3 channels, in pairs
    if (k.steps == 11) return SumsOfSteps<V, BLOCKS, 11>(k, job, block);  // 7 columns
    if (k.steps == 2) return SumsOfSteps<V, BLOCKS, 2>(k, job, block);    // 3 columns of one channel
    if (k.steps == 4) return SumsOfSteps<V, BLOCKS, 4>(k, job, block);    // 7 columns
  }
  SumsOfSteps<V, BLOCKS, 0>(k, job, block);
}

template <class V>
void Int8Sums(const Int8Const& k, const Int8SumsJob& job) {
  size_t block = 0;
  const size_t count = k.epilogue.block_count;
  for (; block + V::kDotBlocks <= count; block += V::kDotBlocks) SumsOfBlocks<V, V::kDotBlocks>(k, job, block);
  if (V::kDotBlocks > 2 && block + 2 <= count) SumsOfBlocks<V, 2>(k, job, block), block += 2;
  for (; block < count; ++block) SumsOfBlocks<V, 1>(k, job, block);
}

// The columns of a row of sums under a pool's window.
struct PoolColumns {
  size_t begin, count;
};

BINARIZE_INLINE PoolColumns ColumnsUnder(const Int8FinishJob& job, size_t column) {
  const size_t first = column * job.pool_stride;
  const size_t begin = first < job.pool_pad ? 0 : first - job.pool_pad;
  return {begin, Min(first + job.pool_w - job.pool_pad, job.row_width) - begin};
}

// Of `least` and `most` the accumulator whose value is larger, of one pixel and block: see Int8Const::pools_values.
template <class V, class E>
BINARIZE_INLINE typename V::Ints LargerOf(const ConvConst& k, const ConvRow& row, size_t column, size_t block,
                                          typename V::Ints least, typename V::Ints most) {
  const size_t channel = block * kLanes, lanes = k.blocks[block].lanes;
  const typename V::Floats scale = V::Load(row.scale + channel), bias = V::Load(k.bias + channel);
  typename V::Floats low = V::Fma(V::ToFloats(least), scale, bias), high = V::Fma(V::ToFloats(most), scale, bias);
  if (row.residual != nullptr) {
    const E* residual = static_cast<const E*>(row.residual) + column * k.channels_out + channel;
    const typename V::Floats own = lanes == kLanes ? V::Load(residual) : V::LoadFirst(residual, lanes);
    low = V::Add(low, own), high = V::Add(high, own);
  }
  if (k.slope != nullptr) {
    const typename V::Floats slope = V::Load(k.slope + channel);
    low = V::Leak(low, slope), high = V::Leak(high, slope);
  }
  return V::Choose(low, high, least, most);
}

// The largest and, if BOTH, the smallest sums of the windows of PIXELS pixels in one block.
template <class V, bool BOTH, int PIXELS>
BINARIZE_INLINE void PoolSums(const Int8FinishJob& job, size_t first, size_t step, size_t pixel_step, size_t columns,
                              typename V::Ints (&most)[PIXELS], typename V::Ints (&least)[PIXELS]) {
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) most[m] = least[m] = V::LoadInts(job.rows[0] + first + m * pixel_step);
  for (size_t r = 0, c = 1; r < job.row_count; ++r, c = 0) {
    for (; c < columns; ++c) {
      const int32_t* sums = job.rows[r] + first + c * step;
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        const typename V::Ints own = V::LoadInts(sums + m * pixel_step);
        most[m] = V::MaxInts(most[m], own);
        if (BOTH) least[m] = V::MinInts(least[m], own);
      }
    }
  }
}

// PIXELS output pixels whose windows have as many columns each.
template <class V, class E, int PIXELS>
BINARIZE_INLINE void FinishPixels(const Int8Const& k, const Int8FinishJob& job, size_t column,
                                  const PoolColumns& window) {
  Link<E, 1> none;
  none.map = nullptr;
  const size_t step = k.epilogue.block_count * kLanes, pixel_step = job.pool_stride * step;
  for (size_t block = 0; block < k.epilogue.block_count; ++block) {
    const size_t first = window.begin * step + block * kLanes;
    typename V::Ints most[PIXELS], least[PIXELS];
    k.pools_values ? PoolSums<V, true>(job, first, step, pixel_step, window.count, most, least)
                   : PoolSums<V, false>(job, first, step, pixel_step, window.count, most, least);
    const typename V::Ints base = V::LoadInts(k.base + block * kLanes);
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) most[m] = V::AddInts(base, most[m]);
    if (k.pools_values) {
      BINARIZE_UNROLL
      for (int m = 0; m < PIXELS; ++m) {
        most[m] = LargerOf<V, E>(k.epilogue, job.out, column + m, block, V::AddInts(base, least[m]), most[m]);
      }
    }
    if (k.epilogue.blocks[block].lanes == kLanes) {
      Finish<V, true, 1>(k.epilogue, job.out, column, none, block, 0, &most);
    } else {
      Finish<V, false, 1>(k.epilogue, job.out, column, none, block, 0, &most);
    }
  }
}

template <class V, class E>
void FinishElements(const Int8Const& k, const Int8FinishJob& job) {
  constexpr size_t kPixels = 4;
  for (size_t column = job.out.begin; column < job.out.end;) {
    const PoolColumns window = ColumnsUnder(job, column);
    const bool several = column + kPixels <= job.out.end && window.count == job.pool_w &&
                         ColumnsUnder(job, column + kPixels - 1).count == job.pool_w;
    if (several) {
      FinishPixels<V, E, 4>(k, job, column, window);
    } else {
      FinishPixels<V, E, 1>(k, job, column, window);
    }
    column += several ? kPixels : 1;
  }
}

template <class V>
void Int8Finish(const Int8Const& k, const Int8FinishJob& job) {
  k.epilogue.element == Element::kFloat16 ? FinishElements<V, Half>(k, job) : FinishElements<V, float>(k, job);
}

}  // namespace generic
}  // namespace binarize
