// One call of the operator: from tensors of a known geometry to rows for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/geometry.h"
#include "core/kernels.h"
#include "core/plan.h"

namespace binarize {

// What multiplies the accumulators of a call.
struct ConvFactors {
  const float* gate;         // [n, channels_out]; null when neutral
  const float* pixels;       // [n or 1, out_h, out_w]; null when neutral
  bool pixels_of_one_image;  // the same for all
};

struct ConvTensors {
  const uint64_t* bits;      // [n, h, w, map.planes, words]
  const void* link;       // of the plan's element type; null when neutral
  const void* residual;   // null when neutral
  void* y;                // null when not wanted
  uint64_t* next_bits;    // [n, out_h, out_w, next_planes, words]; null when not wanted
  ConvFactors factors;
};

// Kernels write 16 channels at a time; this writes the quarters of a pixel's last word that have no channel.
void ClearUnusedBits(const ConvConst& constant, const ConvRow& row) noexcept;

// The element `index` of a feature stream.
const void* At(const void* stream, Element element, int64_t index);

// One call. All large memory is the caller's, so that the runtime's own allocator can provide it.
class ConvRun {
 public:
  // Fills the scratch block (at least geometry.scratch_bytes, 64-byte aligned is best). Tensors have the shapes of
  // `geometry`, which must outlive this, and the factors that it says.
  ConvRun(const ConvGeometry& geometry, const ConvTensors& tensors, void* scratch);

  // One of geometry.task_count independent pieces of work, for any threads in any order; results do not depend on who
  // runs them.
  void RunTask(size_t task) const noexcept;

 private:
  size_t FirstWord() const;
  void CopyMap(const uint64_t* bits, uint64_t* copy, int32_t* nonzeros) const;
  void CopyRow(const uint64_t* bits, uint64_t* copy) const;
  void CopyTernaryRow(const uint64_t* bits, uint64_t* copy, int32_t* counts) const;
  void SumWindows(const int32_t* counts, int32_t* nonzeros) const;
  void FillScale(float* scale) const;
  ConvRow MakeRow(int64_t row, int64_t begin, int64_t end) const noexcept;

  const ConvGeometry& g_;
  const ConvPlan& plan_;
  const ConvTensors tensors_;
  const uint32_t* map_;
  bool only_bits_;             // see ConvRow
  const float* scale_;         // [images or 1][terms][padded O]
  const int32_t* nonzeros_;    // [planes][rows][row width]; null where output channels differ in theirs
};

}  // namespace binarize
