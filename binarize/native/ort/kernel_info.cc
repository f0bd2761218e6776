// The operator KernelInfo: which instruction set the kernels of this session run on.
#include "core/dispatch.h"
#include "ort/custom_op.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

class KernelInfo {
 public:
  static constexpr char kName[] = "KernelInfo";
  static constexpr size_t kInputCount = 0, kOutputCount = 1;
  static constexpr Port kInputs[1] = {{kFloat, kRequired}};  // none; an array cannot be empty
  static constexpr Port kOutputs[kOutputCount] = {{kInt64, kRequired}};

  KernelInfo(const OrtApi& api, const OrtKernelInfo*) : api_(api), id_(SelectIsaFromEnvironment().id) {}

  void Compute(OrtKernelContext* context) const {
    const int64_t dims[] = {1};
    OrtValue* out = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, dims, 1, &out));
    void* data = nullptr;
    Check(api_, api_.GetTensorMutableData(out, &data));
    *static_cast<int64_t*>(data) = id_;
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    SetOutput(api, context, 0, kInt64, {Dim{1, ""}});
  }

 private:
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
