// The operator KernelInfo: which instruction set the kernels of this session run on, and which ones could be forced.
#include <algorithm>

#include "core/dispatch.h"
#include "ort/custom_op.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

class KernelInfo {
 public:
  static constexpr char kName[] = "KernelInfo";
  static constexpr size_t kInputCount = 0, kOutputCount = 2;
  static constexpr Port kInputs[1] = {{kFloat, kRequired}};  // none; an array cannot be empty
  static constexpr Port kOutputs[kOutputCount] = {{kInt64, kRequired}, {kInt64, kOptional}};

  KernelInfo(const OrtApi& api, const OrtKernelInfo*) : api_(api), id_(SelectIsaFromEnvironment().id) {}

  void Compute(OrtKernelContext* context) const {
    Write(context, 0, {id_});
    size_t outputs = 0;
    Check(api_, api_.KernelContext_GetOutputCount(context, &outputs));
    if (outputs > 1) Write(context, 1, SupportedIsas());
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    SetOutput(api, context, 0, kInt64, {Dim{1, ""}});
    SetOutput(api, context, 1, kInt64, {Dim{static_cast<int64_t>(SupportedIsas().size()), ""}});
  }

 private:
  void Write(OrtKernelContext* context, size_t index, const std::vector<int64_t>& values) const {
    const int64_t dims[] = {static_cast<int64_t>(values.size())};
    OrtValue* out = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, index, dims, 1, &out));
    if (out == nullptr) return;
    void* data = nullptr;
    Check(api_, api_.GetTensorMutableData(out, &data));
    std::copy(values.begin(), values.end(), static_cast<int64_t*>(data));
  }

  const OrtApi& api_;
  const int64_t id_;
};

}  // namespace

const OrtCustomOp* KernelInfoOp() {
  static const OrtCustomOp op = CustomOp<KernelInfo>::Make();
  return &op;
}

}  // namespace ort
}  // namespace binarize
