// A node's inputs and outputs by index and name.
#pragma once

#include <string>
#include <vector>

#include "ort/wrap.h"

namespace binarize {
namespace ort {

// The value of a constant input, or a tensor without data when it is not constant.
Tensor ConstantInput(const OrtApi& api, const OrtKernelInfo* info, size_t index);

// A constant float [1] or [channels], repeated to `channels` and then up to a multiple of 16 with zeros.
std::vector<float> ChannelParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                    int64_t channels);

// "Not there" is a constant [1,1,1,1] that holds the neutral element.
bool IsNeutral(const OrtApi& api, const OrtKernelInfo* info, size_t index, float neutral);

// The input of this call. The second form refuses another shape.
Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name);
Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name,
                 const std::vector<int64_t>& dims);

// Memory of an output; null when the node does not have it.
void* MakeOutput(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims);

}  // namespace ort
}  // namespace binarize
