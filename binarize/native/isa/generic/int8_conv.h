// The int8 convolution of an image: docs/ops.md, "Int8Conv2d". Four taps of a row of the kernel are one lane's step.
#pragma once

#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

template <class V>
void Quantize(const QuantizeJob& job) {
  const typename V::Floats factor = V::Set(job.factor);
  const typename V::Floats low = V::Set(static_cast<float>(-job.zero_point));
  const typename V::Floats high = V::Set(static_cast<float>(255 - job.zero_point));
  const uint32_t zero = static_cast<uint32_t>(job.zero_point);
  for (size_t i = 0; i < job.count; i += kLanes) {
    const size_t lanes = Min(kLanes, job.count - i);
    const typename V::Floats x = lanes == kLanes ? V::Load(job.x + i) : V::LoadFirst(job.x + i, lanes);
    const typename V::Floats clamped = V::Min(V::Max(V::Mul(x, factor), low), high);
    const typename V::Ints q = V::AddInts(V::Round(clamped), V::Broadcast(&zero));
    if (lanes == kLanes) {
      V::StoreBytes(job.q + i, q);
    } else {
      uint8_t bytes[kLanes];
      V::StoreBytes(bytes, q);
      for (size_t lane = 0; lane < lanes; ++lane) job.q[i + lane] = bytes[lane];
    }
  }
}

template <class V, int PIXELS, int BLOCKS>
BINARIZE_INLINE void SumsTile(const Int8Const& k, const Int8SumsJob& job, size_t block, size_t column) {
  typename V::Ints sums[PIXELS][BLOCKS];
  BINARIZE_UNROLL
  for (int m = 0; m < PIXELS; ++m) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) sums[m][n] = V::ZeroInts();
  }
  constexpr size_t kStep = kLanes * 4;
  const size_t block_step = k.channels * k.kernel_h * k.quads * kStep;
  const int8_t* weights = k.weights + block * block_step;
  for (size_t channel = 0; channel < k.channels; ++channel) {
    const uint8_t* row = job.map + channel * job.channel_step + column * job.pixel_step;
    for (size_t r = 0; r < k.kernel_h; ++r, row += job.row_step) {
      for (size_t quad = 0; quad < k.quads; ++quad, weights += kStep) {
        typename V::Ints w[BLOCKS];
        BINARIZE_UNROLL
        for (int n = 0; n < BLOCKS; ++n) w[n] = V::LoadInts(weights + n * block_step);
        BINARIZE_UNROLL
        for (int m = 0; m < PIXELS; ++m) {
          uint32_t taps;  // at any address
          __builtin_memcpy(&taps, row + m * job.pixel_step + quad * 4, sizeof taps);
          const typename V::Ints a = V::Broadcast(&taps);
          BINARIZE_UNROLL
          for (int n = 0; n < BLOCKS; ++n) sums[m][n] = V::Dot(sums[m][n], a, w[n]);
        }
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
template <class V, int BLOCKS>
void SumsOfBlocks(const Int8Const& k, const Int8SumsJob& job, size_t block) {
  constexpr size_t kPixels = V::kDotPixels;
  size_t column = 0;
  for (; column + kPixels <= job.pixels; column += kPixels) SumsTile<V, V::kDotPixels, BLOCKS>(k, job, block, column);
  if (column == job.pixels) return;
  if (job.pixels >= kPixels) return SumsTile<V, V::kDotPixels, BLOCKS>(k, job, block, job.pixels - kPixels);
  for (; column < job.pixels; ++column) SumsTile<V, 1, BLOCKS>(k, job, block, column);
}

template <class V>
void Int8Sums(const Int8Const& k, const Int8SumsJob& job) {
  size_t block = 0;
  const size_t count = k.epilogue.block_count;
  for (; block + V::kDotBlocks <= count; block += V::kDotBlocks) SumsOfBlocks<V, V::kDotBlocks>(k, job, block);
  if (V::kDotBlocks > 2 && block + 2 <= count) SumsOfBlocks<V, 2>(k, job, block), block += 2;
  for (; block < count; ++block) SumsOfBlocks<V, 1>(k, job, block);
}

// The largest sums under the window of output pixel `column`, negated and ready for the epilogue.
template <class V>
BINARIZE_INLINE typename V::Ints PoolSums(const Int8Const& k, const Int8FinishJob& job, size_t block, size_t column) {
  const size_t first = column * job.pool_stride, step = k.epilogue.block_count * kLanes;
  const size_t begin = first < job.pool_pad ? 0 : first - job.pool_pad;
  const size_t end = Min(first + job.pool_w - job.pool_pad, job.row_width);
  typename V::Ints most = V::LoadInts(job.rows[0] + begin * step + block * kLanes);
  for (size_t r = 0; r < job.row_count; ++r) {
    const int32_t* sums = job.rows[r] + block * kLanes;
    for (size_t c = begin; c < end; ++c) most = V::MaxInts(most, V::LoadInts(sums + c * step));
  }
  return V::SubInts(V::ZeroInts(), most);
}

template <class V, class E, int PIXELS>
BINARIZE_INLINE void FinishPixels(const Int8Const& k, const Int8FinishJob& job, size_t column) {
  const Tile<PIXELS> tile = MakeTile<PIXELS>(k.epilogue, job.out, column);
  Link<E, PIXELS, 1> none;
  none.map = nullptr;
  for (size_t block = 0; block < k.epilogue.block_count; ++block) {
    typename V::Ints negated[PIXELS];
    BINARIZE_UNROLL
    for (int m = 0; m < PIXELS; ++m) negated[m] = PoolSums<V>(k, job, block, column + m);
    if (k.epilogue.blocks[block].lanes == kLanes) {
      Finish<V, true>(k.epilogue, job.out, tile, none, block, 0, negated);
    } else {
      Finish<V, false>(k.epilogue, job.out, tile, none, block, 0, negated);
    }
  }
}

template <class V, class E>
void FinishElements(const Int8Const& k, const Int8FinishJob& job) {
  constexpr size_t kPixels = 4;
  size_t column = job.out.begin;
  for (; column + kPixels <= job.out.end; column += kPixels) FinishPixels<V, E, 4>(k, job, column);
  for (; column < job.out.end; ++column) FinishPixels<V, E, 1>(k, job, column);
}

template <class V>
void Int8Finish(const Int8Const& k, const Int8FinishJob& job) {
  k.epilogue.element == Element::kFloat16 ? FinishElements<V, Half>(k, job) : FinishElements<V, float>(k, job);
}

}  // namespace generic
}  // namespace binarize
