// See shape_inference.h.
#include "ort/shape_inference.h"

#include "core/bits.h"
#include "ort/wrap.h"

namespace binarize {
namespace ort {
namespace {

// What is known of an input, or null. It stays the context's: releasing it is a double free.
const OrtTensorTypeAndShapeInfo* InputInfo(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  return Succeeded(api, api.ShapeInferContext_GetInputTypeShape(context, index, &info)) ? info : nullptr;
}

// Whether the node has that attribute with exactly so many bytes of that type: what is wrong, kernel creation says.
bool ReadAttribute(const OrtApi& api, const OrtShapeInferContext* context, const char* name, int32_t type,
                   void* data, size_t size) {
  const OrtOpAttr* attribute = nullptr;
  if (!Succeeded(api, api.ShapeInferContext_GetAttribute(context, name, &attribute))) return false;
  if (attribute == nullptr) return false;
  size_t bytes = 0;
  return Succeeded(api, api.ReadOpAttr(attribute, type, data, size, &bytes)) && bytes == size;
}

}  // namespace

int32_t InputType(const OrtApi& api, const OrtShapeInferContext* context, size_t index, int32_t fallback) {
  const OrtTensorTypeAndShapeInfo* info = InputInfo(api, context, index);
  int32_t type = fallback;
  if (info != nullptr) Check(api, api.GetTensorElementType(info, &type));
  return type;
}

std::vector<Dim> InputDims(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  const OrtTensorTypeAndShapeInfo* info = InputInfo(api, context, index);
  if (info == nullptr) return {};
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> values(rank, -1);
  std::vector<const char*> names(rank, "");
  Check(api, api.GetDimensions(info, values.data(), rank));
  Check(api, api.GetSymbolicDimensions(info, names.data(), rank));
  std::vector<Dim> dims(rank);
  for (size_t i = 0; i < rank; ++i) {
    dims[i].value = values[i];
    if (names[i] != nullptr) dims[i].name = names[i];
  }
  return dims;
}

void SetOutput(const OrtApi& api, const OrtShapeInferContext* context, size_t index, int32_t type,
               const std::vector<Dim>& dims) {
  for (const Dim& d : dims) {
    if (!d.known() && d.name.empty()) return;  // the runtime would take it for an extent of -1
  }
  TypeAndShape shape{api};
  Check(api, api.CreateTensorTypeAndShapeInfo(&shape.info));
  Check(api, api.SetTensorElementType(shape.info, type));
  std::vector<int64_t> values;
  std::vector<const char*> names;
  for (const Dim& d : dims) {
    values.push_back(d.value);
    names.push_back(d.name.c_str());
  }
  Check(api, api.SetDimensions(shape.info, values.data(), values.size()));
  Check(api, api.SetSymbolicDimensions(shape.info, names.data(), names.size()));
  Succeeded(api, api.ShapeInferContext_SetOutputTypeShape(context, index, shape.info));  // without it, none is known
}

void ReadInts(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
              std::vector<int64_t>* values) {
  std::vector<int64_t> read(values->size());
  if (ReadAttribute(api, context, name, kAttributeInts, read.data(), read.size() * sizeof(int64_t))) *values = read;
}

int64_t ReadInt(const OrtApi& api, const OrtShapeInferContext* context, const char* name, int64_t fallback) {
  int64_t value = 0;
  return ReadAttribute(api, context, name, kAttributeInt, &value, sizeof value) ? value : fallback;
}

Dim BitsOf(const Dim& channels, const std::vector<Dim>& threshold) {
  const Dim planes = threshold.size() == 2 ? threshold[0] : Dim{1, ""};
  if (!planes.known() || planes.value < 1 || threshold.empty()) return Dim{};
  if (!channels.known()) {
    return planes.value == 1 && !channels.name.empty() ? Dim{-1, "ceil(" + channels.name + "/64)"} : Dim{};
  }
  const int64_t words = WordsFor(channels.value);
  return words > 0 && planes.value > INT64_MAX / words ? Dim{} : Dim{words * planes.value, ""};
}

}  // namespace ort
}  // namespace binarize
