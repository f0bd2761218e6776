// Thin C++ over the C interface: statuses become exceptions, handles are released by scope.
// Exceptions end at Guard(): none ever crosses the ABI border.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checked.h"
#include "ort/ort_abi.h"

namespace binarize {
namespace ort {

// A status ONNX Runtime itself returned.
struct RuntimeFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void Check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw RuntimeFailure(message);
}

// Drops the status of a question whose answer "no" is fine.
inline bool Succeeded(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

// Type and shape of a tensor, for a scope.
struct TypeAndShape {
  const OrtApi& api;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ~TypeAndShape() {
    if (info != nullptr) api.ReleaseTensorTypeAndShapeInfo(info);
  }
};

// Runs `body` and turns whatever it throws into a status that starts with `where`.
template <typename Body>
OrtStatus* Guard(const OrtApi& api, const std::string& where, Body body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const InvalidModel& e) {
      return api.CreateStatus(kInvalidArgument, (where + ": " + e.what()).c_str());
    } catch (const std::bad_alloc&) {
      return api.CreateStatus(kFail, (where + ": out of memory").c_str());
    } catch (const std::exception& e) {
      return api.CreateStatus(kFail, (where + ": " + e.what()).c_str());
    }
  } catch (...) {  // building the message failed
    return api.CreateStatus(kFail, "ai.binarize: out of memory");
  }
}

struct Tensor {
  const void* data = nullptr;
  int32_t type = 0;
  std::vector<int64_t> dims;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : dims) n = CheckedProduct(n, d, "tensor");
    return n;
  }
  const float* floats() const { return static_cast<const float*>(data); }
  const uint64_t* words() const { return static_cast<const uint64_t*>(data); }
};

std::string ShapeText(const std::vector<int64_t>& dims);
Tensor ReadTensor(const OrtApi& api, const OrtValue* value);
std::string NodeName(const OrtApi& api, const OrtKernelInfo* info);
std::string InputName(const OrtApi& api, const OrtKernelInfo* info, size_t index);

// The attribute, or the default when the node does not have it.
int64_t IntAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, const int64_t* fallback);
std::vector<int64_t> IntsAttribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                                   const std::vector<int64_t>& fallback);

// Refuses a node that has one of them: attributes of a standard operator that ours does without. Left unread they would
// make another network of the file.
void RefuseAttributes(const OrtApi& api, const OrtKernelInfo* info, std::initializer_list<const char*> names);

using Task = void(void* call, size_t index);

// Runs `task(call, i)` for every i below `tasks`, on the session's threads if there are several, and waits for all.
void RunTasks(const OrtApi& api, const OrtKernelContext* context, Task* task, size_t tasks, void* call);

// A block of memory from the runtime's arena for the length of one call; null if it has no bytes.
class Scratch {
 public:
  Scratch(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* info, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  const OrtApi& api_;
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace ort
}  // namespace binarize
