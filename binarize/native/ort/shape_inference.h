// Shape inference with symbolic dimensions ("N" in, "N" out).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort/ort_abi.h"

namespace binarize {
namespace ort {

struct Dim {
  int64_t value = -1;  // -1: not known
  std::string name;    // the symbol of an unknown dimension, or empty

  bool known() const { return value >= 0; }
};

// The dimensions of an input; empty when its shape is not known.
std::vector<Dim> InputDims(const OrtApi& api, const OrtShapeInferContext* context, size_t index);

// The element type of an input, or the fallback. Operators registered for several types share one inference function.
int32_t InputType(const OrtApi& api, const OrtShapeInferContext* context, size_t index, int32_t fallback);

// Does nothing for an output the node does not have, and when a dimension has neither extent nor symbol.
void SetOutput(const OrtApi& api, const OrtShapeInferContext* context, size_t index, int32_t type,
               const std::vector<Dim>& dims);

// `values` keeps its content where the node lacks the attribute.
void ReadInts(const OrtApi& api, const OrtShapeInferContext* context, const char* name, std::vector<int64_t>* values);
int64_t ReadInt(const OrtApi& api, const OrtShapeInferContext* context, const char* name, int64_t fallback);

// The words of a pixel's bits: of `channels`, for each row of a threshold of these dimensions.
Dim BitsOf(const Dim& channels, const std::vector<Dim>& threshold);

}  // namespace ort
}  // namespace binarize
