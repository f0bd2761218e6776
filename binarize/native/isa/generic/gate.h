// The parts of the operator Gate that pass over much memory: sums over a map's rows, and vectors times matrices.
#pragma once

#include "core/kernels.h"
#include "isa/generic/epilogue.h"

namespace binarize {
namespace generic {

// BLOCKS blocks of a row from a channel on, the last one of `lanes` channels.
template <class V, bool FULL, int BLOCKS, class E>
BINARIZE_INLINE void SumRow(const E* x, size_t width, size_t channels, size_t lanes, float* sums) {
  typename V::Floats sum[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) sum[n] = V::Zero();
  for (size_t column = 0; column < width; ++column, x += channels) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) sum[n] = V::Add(sum[n], Read<V, FULL>(x + n * kLanes, lanes));
  }
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) Write<V, FULL>(sums + n * kLanes, sum[n], lanes);
}

template <class V, class E>
void RowSumsOf(const RowSumsJob& job) {
  constexpr int kTogether = 4;  // sums that do not wait for each other
  const size_t channels = job.channels;
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    const E* x = static_cast<const E*>(job.x) + row * job.width * channels;
    float* sums = job.sums + row * channels;
    size_t channel = 0;
    for (; channel + kTogether * kLanes <= channels; channel += kTogether * kLanes) {
      SumRow<V, true, kTogether>(x + channel, job.width, channels, kLanes, sums + channel);
    }
    for (; channel + kLanes <= channels; channel += kLanes) {
      SumRow<V, true, 1>(x + channel, job.width, channels, kLanes, sums + channel);
    }
    if (channel < channels) {
      SumRow<V, false, 1>(x + channel, job.width, channels, channels - channel, sums + channel);
    }
  }
}

template <class V>
void RowSums(const RowSumsJob& job) {
  job.element == Element::kFloat16 ? RowSumsOf<V, Half>(job) : RowSumsOf<V, float>(job);
}

// y += the sum of ROWS inputs times their rows of the weight, for BLOCKS blocks of outputs, the last one of `lanes`.
template <class V, bool FULL, int ROWS, int BLOCKS>
BINARIZE_INLINE void AddRows(const typename V::Floats (&x)[ROWS], const float* weight, size_t outputs, size_t lanes,
                             float* y) {
  typename V::Floats sum[BLOCKS];
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) sum[n] = Read<V, FULL>(y + n * kLanes, lanes);
  BINARIZE_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    BINARIZE_UNROLL
    for (int n = 0; n < BLOCKS; ++n) {
      sum[n] = V::Fma(x[r], Read<V, FULL>(weight + static_cast<size_t>(r) * outputs + n * kLanes, lanes), sum[n]);
    }
  }
  BINARIZE_UNROLL
  for (int n = 0; n < BLOCKS; ++n) Write<V, FULL>(y + n * kLanes, sum[n], lanes);
}

// The same for all outputs. The weight is read as it lies in memory, from which it comes each time.
template <class V, int ROWS>
BINARIZE_INLINE void AddInputs(const ProjectJob& job, size_t input) {
  constexpr int kTogether = V::kFewRegisters ? 2 : 4;
  typename V::Floats x[ROWS];
  BINARIZE_UNROLL
  for (int r = 0; r < ROWS; ++r) x[r] = V::Set(job.x[input + static_cast<size_t>(r)]);
  const size_t outputs = job.outputs;
  const float* weight = job.weight + input * outputs;
  size_t o = 0;
  for (; o + kTogether * kLanes <= outputs; o += kTogether * kLanes) {
    AddRows<V, true, ROWS, kTogether>(x, weight + o, outputs, kLanes, job.y + o);
  }
  for (; o + kLanes <= outputs; o += kLanes) AddRows<V, true, ROWS, 1>(x, weight + o, outputs, kLanes, job.y + o);
  if (o < outputs) AddRows<V, false, ROWS, 1>(x, weight + o, outputs, outputs - o, job.y + o);
}

template <class V>
void Project(const ProjectJob& job) {
  constexpr size_t kRows = 4;  // inputs at a time: sums that lie in memory are read and written once for so many
  for (size_t o = 0; o < job.outputs; ++o) job.y[o] = 0.0f;
  size_t input = 0;
  for (; input + kRows <= job.inputs; input += kRows) AddInputs<V, kRows>(job, input);
  for (; input < job.inputs; ++input) AddInputs<V, 1>(job, input);
}

}  // namespace generic
}  // namespace binarize
