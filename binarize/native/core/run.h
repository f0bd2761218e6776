// One call of the operator: from a plan and the shapes of this call to rows for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "core/plan.h"

namespace binarize {

struct MapShape {
  int64_t n, h, w;
};

// What multiplies the accumulators of a call.
struct ConvFactors {
  const float* gate;         // [n, channels_out]; null when neutral
  const float* pixels;       // [n or 1, out_h, out_w]; null when neutral
  bool pixels_of_one_image;  // the same for all
};

struct ConvTensors {
  const uint64_t* bits;      // [n, h, w, planes of bits, words]
  const void* link;       // of the plan's element type; null when neutral
  const void* residual;   // null when neutral
  void* y;                // null when not wanted
  uint64_t* next_bits;    // null when not wanted
  ConvFactors factors;
};

// Kernels write 16 channels at a time; this writes the quarters of a pixel's last word that have no channel.
void ClearUnusedBits(const ConvConst& constant, const ConvRow& row) noexcept;

// The element `index` of a feature stream.
const void* At(const void* stream, Element element, int64_t index);

// The geometry of one call. Lives on the caller's stack; all large memory is the caller's scratch block,
// so that the runtime's own allocator can provide it.
class ConvRun {
 public:
  // `gated` and `factored` say which of ConvFactors the call has. Throws InvalidModel when the kernel does not fit the
  // map or sizes overflow.
  ConvRun(const ConvPlan& plan, const MapShape& map, bool gated = false, bool factored = false);

  int64_t out_h() const { return out_h_; }
  int64_t out_w() const { return out_w_; }
  size_t scratch_bytes() const { return scratch_bytes_; }

  // Fills the scratch block (at least scratch_bytes(), 64-byte aligned is best). Call once, before RunTask.
  void Prepare(const ConvTensors& tensors, void* scratch);

  // Independent pieces of work, for any threads in any order; results do not depend on who runs them.
  size_t task_count() const { return task_count_; }
  void RunTask(size_t task) const noexcept;

 private:
  struct Interval {
    int64_t begin, end;
    bool operator==(const Interval& other) const { return begin == other.begin && end == other.end; }
  };
  static Interval TapsInside(int64_t index, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel,
                             int64_t size);

  void Flatten();
  void PlanColumns();
  void PlanRows();
  void PlanTasks();
  void PlanScratch();
  void CopyMap(const uint64_t* bits, uint64_t* copy, int32_t* nonzeros) const;
  void CopyRow(const uint64_t* bits, uint64_t* copy) const;
  void CopyTernaryRow(const uint64_t* bits, uint64_t* copy, int32_t* counts) const;
  void SumWindows(const int32_t* counts, int32_t* nonzeros) const;
  void FillClasses(int32_t* base, uint32_t* column_class) const;
  void FillScale(float* scale) const;
  ConvRow MakeRow(int64_t row, int64_t begin, int64_t end) const noexcept;

  const ConvPlan& plan_;
  int64_t n_, h_, w_, out_h_, out_w_;
  int64_t rows_, row_width_;         // after flattening: rows_ = images * output rows
  int64_t images_, map_h_, map_w_;   // after flattening
  const bool gated_, factored_;
  bool flat_ = false, padded_ = false;
  bool copied_ = false;              // the map is copied, to pad its columns, clear stray bits or lay it out by planes
  int64_t padded_w_;
  size_t map_words_ = 0;             // uint32 words per pixel of a plane of the map; see ConvCall
  ConvCall call_{};
  std::vector<Interval> row_classes_, column_classes_;
  std::vector<uint32_t> class_of_row_, class_of_column_;
  size_t map_bytes_ = 0, base_bytes_ = 0, column_bytes_ = 0, scale_bytes_ = 0, nonzeros_bytes_ = 0, scratch_bytes_ = 0;
  // A task is a range of rows x a range of columns x a range of output blocks.
  int64_t rows_per_task_ = 1, columns_per_task_ = 1, blocks_per_task_ = 1;
  int64_t column_pieces_ = 1, block_pieces_ = 1;
  size_t task_count_ = 0;

  ConvTensors tensors_{};
  const uint32_t* map_ = nullptr;
  const int32_t* base_ = nullptr;
  const uint32_t* column_class_ = nullptr;
  const float* scale_ = nullptr;  // [images or 1][terms][padded O]
  const int32_t* nonzeros_ = nullptr;  // [planes][rows][row width]; null where output channels differ in theirs
};

}  // namespace binarize
