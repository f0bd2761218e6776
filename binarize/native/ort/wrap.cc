// Reading tensors, names and attributes; see wrap.h.
#include "ort/wrap.h"

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace binarize {
namespace ort {
namespace {

// Whether the node has the attribute, and how many integers are in it: 0 if it is of another type. Asking for the size
// succeeds or fails with "buffer too small" when the attribute exists.
bool HasAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, size_t* integers) {
  *integers = 0;
  return Succeeded(api, api.KernelInfoGetAttributeArray_int64(info, name, nullptr, integers)) || *integers != 0;
}

// What `read(out, size)` writes, asked for its size first; the size counts the terminating zero. Empty if it fails.
template <typename Read>
std::string ReadName(const OrtApi& api, const Read& read) {
  size_t size = 0;
  if (!Succeeded(api, read(nullptr, &size)) || size == 0) return "";
  std::string name(size, '\0');
  if (!Succeeded(api, read(&name[0], &size))) return "";
  name.resize(size - 1);
  return name;
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i != 0 ? "," : "") + std::to_string(dims[i]);
  return text + "]";
}

Tensor ReadTensor(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  TypeAndShape shape{api};
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
  return ReadName(api, [&](char* out, size_t* size) { return api.KernelInfo_GetNodeName(info, out, size); });
}

std::string InputName(const OrtApi& api, const OrtKernelInfo* info, size_t index) {
  return ReadName(api, [&](char* out, size_t* size) { return api.KernelInfo_GetInputName(info, index, out, size); });
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

void RefuseAttributes(const OrtApi& api, const OrtKernelInfo* info, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    size_t integers = 0;
    const bool is_there = HasAttribute(api, info, name, &integers);
    Require(!is_there, [&] { return "the operator has no attribute " + std::string(name) + "; see docs/ops.md"; });
  }
}

#ifdef __SANITIZE_THREAD__

namespace {

// ONNX Runtime's pool orders the caller before its tasks and these before the caller goes on, but by atomics in code
// that is not instrumented. Said here, so that only what our tasks do to one another can be reported.
struct OrderedCall {
  Task* task;
  void* call;
  char before, after;

  static void Run(void* user, size_t index) {
    OrderedCall& ordered = *static_cast<OrderedCall*>(user);
    __tsan_acquire(&ordered.before);
    ordered.task(ordered.call, index);
    __tsan_release(&ordered.after);
  }
};

}  // namespace

void RunTasks(const OrtApi& api, const OrtKernelContext* context, Task* task, size_t tasks, void* call) {
  OrderedCall ordered{task, call, 0, 0};
  __tsan_release(&ordered.before);
  Check(api, api.KernelContext_ParallelFor(context, OrderedCall::Run, tasks, 0, &ordered));
  __tsan_acquire(&ordered.after);
}

#else

void RunTasks(const OrtApi& api, const OrtKernelContext* context, Task* task, size_t tasks, void* call) {
  if (tasks == 1) return task(call, 0);
  Check(api, api.KernelContext_ParallelFor(context, task, tasks, 0, call));
}

#endif

Scratch::Scratch(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* info, size_t bytes)
    : api_(api) {
  if (bytes == 0) return;
  Check(api, api.KernelContext_GetAllocator(context, info, &allocator_));
  OrtStatus* status = api.AllocatorAlloc(allocator_, bytes, &data_);
  if (status == nullptr && data_ != nullptr) return;
  api.ReleaseAllocator(allocator_);
  Check(api, status);
  throw std::bad_alloc();
}

Scratch::~Scratch() {
  if (allocator_ == nullptr) return;
  if (OrtStatus* status = api_.AllocatorFree(allocator_, data_)) api_.ReleaseStatus(status);
  api_.ReleaseAllocator(allocator_);
}

}  // namespace ort
}  // namespace binarize
