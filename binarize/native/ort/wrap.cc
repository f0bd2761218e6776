// Reading tensors, names and attributes; see wrap.h.
#include "ort/wrap.h"

namespace binarize {
namespace ort {
namespace {

struct ShapeInfo {
  const OrtApi& api;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ~ShapeInfo() {
    if (info != nullptr) api.ReleaseTensorTypeAndShapeInfo(info);
  }
};

// Drops the status of a question whose answer "no" is fine.
bool Succeeded(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

// Whether the node has the attribute, and how many integers are in it: 0 if it is of another type. Asking for the size
// succeeds or fails with "buffer too small" when the attribute exists.
bool HasAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, size_t* integers) {
  *integers = 0;
  return Succeeded(api, api.KernelInfoGetAttributeArray_int64(info, name, nullptr, integers)) || *integers != 0;
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i != 0 ? "," : "") + std::to_string(dims[i]);
  return text + "]";
}

Tensor ReadTensor(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  ShapeInfo shape{api};
  Check(api, api.GetTensorTypeAndShape(value, &shape.info));
  Check(api, api.GetTensorElementType(shape.info, &tensor.type));
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(shape.info, &rank));
  tensor.dims.resize(rank);
  Check(api, api.GetDimensions(shape.info, tensor.dims.data(), rank));
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

std::string NodeName(const OrtApi& api, const OrtKernelInfo* info) {
  size_t size = 0;
  if (!Succeeded(api, api.KernelInfo_GetNodeName(info, nullptr, &size)) || size == 0) return "";
  std::string name(size, '\0');
  if (!Succeeded(api, api.KernelInfo_GetNodeName(info, &name[0], &size))) return "";
  name.resize(size - 1);  // the size counts the terminating zero
  return name;
}

int64_t IntAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, const int64_t* fallback) {
  int64_t value = 0;
  if (Succeeded(api, api.KernelInfoGetAttribute_int64(info, name, &value))) return value;
  size_t integers = 0;  // the default in the place of a wrong value would be another network
  Require(!HasAttribute(api, info, name, &integers), "the attribute " + std::string(name) + " must be an integer");
  Require(fallback != nullptr, "the integer attribute " + std::string(name) + " is missing");
  return *fallback;
}

std::vector<int64_t> IntsAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                                   const std::vector<int64_t>& fallback) {
  size_t size = 0;
  if (!HasAttribute(api, info, name, &size)) return fallback;
  Require(size == fallback.size(), "the attribute " + std::string(name) + " must have " +
                                       std::to_string(fallback.size()) + " integers, has " + std::to_string(size));
  std::vector<int64_t> values(size);
  Check(api, api.KernelInfoGetAttributeArray_int64(info, name, values.data(), &size));
  return values;
}

Scratch::Scratch(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* info, size_t bytes)
    : api_(api) {
  Check(api, api.KernelContext_GetAllocator(context, info, &allocator_));
  OrtStatus* status = api.AllocatorAlloc(allocator_, bytes, &data_);
  if (status == nullptr && data_ != nullptr) return;
  api.ReleaseAllocator(allocator_);
  Check(api, status);
  throw std::bad_alloc();
}

Scratch::~Scratch() {
  if (OrtStatus* status = api_.AllocatorFree(allocator_, data_)) api_.ReleaseStatus(status);
  api_.ReleaseAllocator(allocator_);
}

}  // namespace ort
}  // namespace binarize
