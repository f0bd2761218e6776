// See ports.h.
#include "ort/ports.h"

#include "core/bits.h"

namespace binarize {
namespace ort {

Tensor ConstantInput(const OrtApi& api, const OrtKernelInfo* info, size_t index) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  return is_constant != 0 && value != nullptr ? ReadTensor(api, value) : Tensor();
}

std::vector<float> ChannelParameter(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name,
                                    int64_t channels) {
  const Tensor t = ConstantInput(api, info, index);
  const std::string where = std::string("input ") + name;
  Require(t.data != nullptr, where + " must be a non-empty constant (an initializer), because kernels prepare it once");
  Require(t.type == kFloat, where + " has the wrong element type");
  Require(t.dims.size() == 1 && (t.dims[0] == 1 || t.dims[0] == channels),
          where + " must have the shape [1] or [C] = [" + std::to_string(channels) + "], has " + ShapeText(t.dims));
  std::vector<float> values(static_cast<size_t>(RoundUp(channels, kLanes)), 0.0f);
  for (int64_t c = 0; c < channels; ++c) values[static_cast<size_t>(c)] = t.floats()[t.dims[0] == 1 ? 0 : c];
  return values;
}

bool IsNeutral(const OrtApi& api, const OrtKernelInfo* info, size_t index, float neutral) {
  const Tensor t = ConstantInput(api, info, index);
  return t.data != nullptr && t.type == kFloat && t.dims == std::vector<int64_t>{1, 1, 1, 1} &&
         t.floats()[0] == neutral;
}

Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name) {
  const OrtValue* value = nullptr;
  Check(api, api.KernelContext_GetInput(context, index, &value));
  Require(value != nullptr, std::string("input ") + name + " is missing");
  return ReadTensor(api, value);
}

Tensor ReadInput(const OrtApi& api, const OrtKernelContext* context, size_t index, const char* name,
                 const std::vector<int64_t>& dims) {
  Tensor tensor = ReadInput(api, context, index, name);
  Require(tensor.dims == dims, std::string("input ") + name + " must have the shape " + ShapeText(dims) + ", has " +
                                   ShapeText(tensor.dims));
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
