// Where a pool looks. Static functions only, because files with other target flags include this (see core/kernels.h).
#pragma once

#include "core/kernels.h"

namespace binarize {

// The taps of a window inside the map along one axis; the first one lies at `start`.
struct PoolTaps {
  size_t start, count;
};

struct PoolWindow {
  PoolTaps rows, columns;
  float start;   // what joining begins with
  float factor;  // of an average's sum
};

static inline PoolTaps PoolTapsInside(size_t index, size_t stride, size_t pad, size_t dilation, size_t kernel,
                                      size_t size) {
  const size_t begin = index * stride;  // in the padded map
  const size_t skipped = begin < pad ? (pad - begin + dilation - 1) / dilation : 0;
  const size_t start = begin + skipped * dilation - pad;
  if (skipped >= kernel || start >= size) return {0, 0};
  const size_t fitting = (size - 1 - start) / dilation + 1;
  return {start, fitting < kernel - skipped ? fitting : kernel - skipped};
}

static inline PoolWindow FindPoolWindow(const PoolJob& job, size_t row, size_t column, bool average) {
  PoolWindow w;
  w.rows = PoolTapsInside(row, job.stride_h, job.pad_top, job.dilation_h, job.kernel_h, job.map_h);
  w.columns = PoolTapsInside(column, job.stride_w, job.pad_left, job.dilation_w, job.kernel_w, job.map_w);
  const size_t inside = w.rows.count * w.columns.count;
  const size_t whole = job.whole_window != 0 ? job.whole_window : inside;
  w.start = average || inside == 0 ? 0.0f : -__builtin_inff();
  w.factor = whole == 0 ? 0.0f : 1.0f / static_cast<float>(whole);
  return w;
}

}  // namespace binarize
