// The operator Pack: NHWC floats against a threshold, to bits.
#include <algorithm>

#include "core/bits.h"
#include "core/dispatch.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

struct Call {
  const Kernels* kernels;
  PackJob job;
  size_t pixels_per_task;
};

void RunTask(void* user, size_t task) {
  const Call& call = *static_cast<const Call*>(user);
  PackJob job = call.job;
  const size_t first = task * call.pixels_per_task;
  job.pixels = std::min(call.pixels_per_task, call.job.pixels - first);
  job.x = static_cast<const char*>(job.x) + first * job.channels * SizeOf(job.element);
  job.bits += first * job.planes * job.words;
  call.kernels->pack(job);
}

// TYPE is the element type of x: one operator is registered per type.
template <int32_t TYPE>
class Pack {
 public:
  static constexpr char kName[] = "Pack";
  static constexpr size_t kInputCount = 2, kOutputCount = 1;
  static constexpr Port kInputs[kInputCount] = {{TYPE, kRequired}, {kFloat, kRequired}};
  static constexpr Port kOutputs[kOutputCount] = {{kUint64, kRequired}};

  Pack(const OrtApi& api, const OrtKernelInfo*) : api_(api), kernels_(SelectIsaFromEnvironment().kernels) {}

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadInput(api_, context, 0, "x"), threshold = ReadInput(api_, context, 1, "threshold");
    Require(x.dims.size() == 4, [&] { return "input x must have the shape [N,H,W,C], has " + ShapeText(x.dims); });
    const int64_t channels = x.dims[3], words = WordsFor(channels);
    const bool one_plane = threshold.dims.size() == 1 && (threshold.dims[0] == 1 || threshold.dims[0] == channels);
    const bool several = threshold.dims.size() == 2 && threshold.dims[0] >= 1 && threshold.dims[1] == channels;
    Require(one_plane || several, [&] {
      return "input threshold must have the shape [1], [C] or [planes,C], C = " + std::to_string(channels) + ", has " +
             ShapeText(threshold.dims);
    });
    const int64_t planes = several ? threshold.dims[0] : 1;
    const int64_t row = CheckedProduct(planes, words, "bits of a pixel");
    void* bits = MakeOutput(api_, context, 0, {x.dims[0], x.dims[1], x.dims[2], row});
    const int64_t pixels = x.size() == 0 ? 0 : x.size() / channels;
    if (pixels == 0) return;

    Call call{};
    call.kernels = kernels_;
    call.job.element = ElementOf(TYPE);
    call.job.x = x.data;
    call.job.threshold = threshold.floats();
    call.job.threshold_step = one_plane && threshold.dims[0] == 1 ? 0 : 1;
    call.job.bits = static_cast<uint64_t*>(bits);
    call.job.pixels = static_cast<size_t>(pixels);
    call.job.planes = static_cast<size_t>(planes);
    call.job.channels = static_cast<size_t>(channels);
    call.job.words = static_cast<size_t>(words);
    const PixelTasks tasks(call.job.pixels, call.job.channels * SizeOf(call.job.element));
    call.pixels_per_task = tasks.pixels_per_task;
    RunTasks(api_, context, RunTask, tasks.count, &call);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, 0);
    if (dims.size() != 4) return;
    dims[3] = BitsOf(dims[3], InputDims(api, context, 1));
    SetOutput(api, context, 0, kUint64, dims);
  }

 private:
  const OrtApi& api_;
  const Kernels* kernels_;
};

}  // namespace

const OrtCustomOp* PackOp() {
  static const OrtCustomOp op = CustomOp<Pack<kFloat>>::Make();
  return &op;
}

const OrtCustomOp* PackHalfOp() {
  static const OrtCustomOp op = CustomOp<Pack<kFloat16>>::Make();
  return &op;
}

}  // namespace ort
}  // namespace binarize
