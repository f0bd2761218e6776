// A node's inputs and outputs by index and name.
#pragma once

#include <string>
#include <vector>

#include "core/kernels.h"
#include "ort/wrap.h"

namespace binarize {
namespace ort {

// The stream's elements for the kernels, and their size.
inline Element ElementOf(int32_t type) { return type == kFloat16 ? Element::kFloat16 : Element::kFloat32; }
inline size_t SizeOf(Element e) { return e == Element::kFloat16 ? sizeof(Half) : sizeof(float); }

// How a map that is gone through once, pixel by pixel, is split: in tasks that are worth their dispatch, and small ones
// in enough that threads share them evenly. Pixels of one part of a map so tend to stay with one thread, from operator to
// operator.
struct PixelTasks {
  PixelTasks(size_t pixels, size_t bytes_per_pixel);
  size_t pixels_per_task, count;
};

// The value of a constant input, or a tensor without data when it is not constant.
Tensor ConstantInput(const OrtApi& api, const OrtKernelInfo* info, size_t index);

Tensor RequiredConstant(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name, int32_t type);

// The values of a constant float [1] or [channels].
std::vector<float> ChannelParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                    int64_t channels);

// The values of a constant float [1], [channels] or [planes, channels]; `planes` is 1 for the first two.
std::vector<float> PlaneParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                  int64_t channels, int64_t* planes);

// Whether the node lists the optional input `index`: old files lack those that came later. One that is listed without a
// name is refused.
bool HasInput(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name);

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
