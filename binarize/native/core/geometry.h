// What follows from a plan and the shape of a map: extents, borders and the split in tasks. Made once for a shape.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/bits.h"
#include "core/kernels.h"
#include "core/plan.h"

namespace binarize {

struct MapShape {
  int64_t n, h, w;
  int64_t planes;  // of bits: at least those that the conv reads
  bool operator==(const MapShape& other) const {
    return n == other.n && h == other.h && w == other.w && planes == other.planes;
  }
};

// [0, size) in pieces that differ by one unit at most, or by less at the end.
struct Split {
  int64_t size = 0, unit = 1, pieces = 1;
  int64_t Begin(int64_t piece) const { return std::min(size, piece * CeilDiv(size, unit) / pieces * unit); }
  int64_t End(int64_t piece) const { return Begin(piece + 1); }
};

// Does not change after it is made, so calls on several threads may share one.
struct ConvGeometry {
  // Throws InvalidModel when the kernel does not fit the map or sizes overflow. `plan` must outlive it.
  ConvGeometry(const ConvPlan& plan, const MapShape& map);

  // Kernel taps, of rows or of columns.
  struct Interval {
    int64_t begin, end;
    bool operator==(const Interval& other) const { return begin == other.begin && end == other.end; }
  };

  const ConvPlan& plan;
  const MapShape map;
  int64_t out_h, out_w;

  // A 1x1 conv without stride and padding is a matrix product: its pixels form one long row.
  bool flat = false;
  bool padded = false;           // columns are
  bool copied = false;           // the map is, to pad its columns, clear stray bits or lay it out by planes
  int64_t images, map_h, map_w;  // the map as rows see it: 1 x 1 x all pixels if it is flat
  int64_t rows, row_width;       // of the output: rows of all images
  int64_t padded_w;
  size_t map_words;              // uint32 words per pixel of the map as rows see it; see ConvCall
  ConvCall call{};

  std::vector<Interval> row_classes, column_classes;
  std::vector<uint32_t> class_of_row, class_of_column;
  AlignedVector<int32_t> base;   // [row class][column class][bases][padded channels]; none in a ternary conv

  // A task is a range of rows x a range of columns x a range of output blocks.
  Split row_split, column_split, block_split;
  size_t task_count = 0;

  size_t map_bytes = 0, scale_bytes = 0, nonzeros_bytes = 0, scratch_bytes = 0;

 private:
  struct Axis {
    int64_t stride, pad, dilation, kernel, size;
  };
  static Interval TapsInside(const Axis& axis, int64_t index);
  static std::vector<uint32_t> Classify(const Axis& axis, int64_t count, std::vector<Interval>* classes);

  void Flatten();
  void PlanBorders();
  void PlanBase();
  void PlanTasks();
  void PlanScratch();
};

}  // namespace binarize
