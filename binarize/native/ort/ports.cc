// See ports.h.
#include "ort/ports.h"

#include <algorithm>

#include "core/half.h"
#include "core/plan.h"

namespace binarize {
namespace ort {

PixelTasks::PixelTasks(size_t pixels, size_t bytes_per_pixel) {
  constexpr size_t kTasks = 8, kLeastBytes = 16 * 1024, kMostBytes = 64 * 1024;
  const size_t bytes = std::max<size_t>(1, bytes_per_pixel);
  pixels_per_task = std::max<size_t>(1, std::clamp(pixels * bytes / kTasks, kLeastBytes, kMostBytes) / bytes);
  count = (pixels + pixels_per_task - 1) / pixels_per_task;
}

Tensor ConstantInput(const OrtApi& api, const OrtKernelInfo* info, size_t index) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  return is_constant != 0 && value != nullptr ? ReadTensor(api, value) : Tensor();
}

Tensor RequiredConstant(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name, int32_t type) {
  const Tensor tensor = ConstantInput(api, info, index);
  const std::string where = std::string("input ") + name;
  Require(tensor.data != nullptr,
          where + " must be a non-empty constant (an initializer), because kernels prepare it once");
  Require(tensor.type == type, where + " has the wrong element type");
  return tensor;
}

std::vector<float> ChannelParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                    int64_t channels) {
  const Tensor t = RequiredConstant(api, info, index, name, kFloat);
  Require(t.dims.size() == 1 && (t.dims[0] == 1 || t.dims[0] == channels),
          std::string("input ") + name + " must have the shape [1] or [" + std::to_string(channels) + "], has " +
              ShapeText(t.dims));
  return std::vector<float>(t.floats(), t.floats() + t.dims[0]);
}

std::vector<float> PlaneParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                  int64_t channels, int64_t* planes) {
  const Tensor t = RequiredConstant(api, info, index, name, kFloat);
  *planes = 1;
  if (t.dims.size() != 2) return ChannelParameter(api, info, index, name, channels);
  *planes = t.dims[0];
  Require(t.dims[0] >= 1 && t.dims[0] <= kMostPlanes && t.dims[1] == channels,
          std::string("input ") + name + " must have the shape [1], [" + std::to_string(channels) + "] or [planes," +
              std::to_string(channels) + "] of 1 to " + std::to_string(kMostPlanes) + " planes, has " +
              ShapeText(t.dims));
  return std::vector<float>(t.floats(), t.floats() + t.size());
}

bool HasInput(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name) {
  size_t count = 0;
  Check(api, api.KernelInfo_GetInputCount(info, &count));
  if (index >= count) return false;
  Require(!InputName(api, info, index).empty(), [&] {
    return std::string("input ") + name + " is listed without a name; its neutral constant (docs/ops.md) leaves it out";
  });
  return true;
}

bool IsNeutral(const OrtApi& api, const OrtKernelInfo* info, size_t index, float neutral) {
  const Tensor t = ConstantInput(api, info, index);
  if (t.data == nullptr || t.dims != std::vector<int64_t>{1, 1, 1, 1}) return false;
  if (t.type == kFloat16) return Widen(*static_cast<const Half*>(t.data)) == neutral;
  return t.type == kFloat && t.floats()[0] == neutral;
}

Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name) {
  const OrtValue* value = nullptr;
  Check(api, api.KernelContext_GetInput(context, index, &value));
  Require(value != nullptr, [&] { return std::string("input ") + name + " is missing"; });
  return ReadTensor(api, value);
}

Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name,
                 const std::vector<int64_t>& dims) {
  Tensor tensor = ReadInput(api, context, index, name);
  Require(tensor.dims == dims, [&] {
    return std::string("input ") + name + " must have the shape " + ShapeText(dims) + ", has " + ShapeText(tensor.dims);
  });
  return tensor;
}

void* MakeOutput(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims) {
  size_t count = 0;
  Check(api, api.KernelContext_GetOutputCount(context, &count));
  if (index >= count) return nullptr;
  OrtValue* value = nullptr;
  Check(api, api.KernelContext_GetOutput(context, index, dims.data(), dims.size(), &value));
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(value, &data));
  return data;
}

}  // namespace ort
}  // namespace binarize
