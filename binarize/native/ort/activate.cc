// The operators Activate and ActivateLink: the epilogue of BinaryConv2d on a float map.
#include <algorithm>

#include "core/bits.h"
#include "core/dispatch.h"
#include "core/half.h"
#include "core/plan.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t { kX, kGate, kScale, kBias, kResidual, kSlope, kShift, kNextThreshold, kGamma, kInputTotal };
enum Output : size_t { kY, kNextBits, kOutputTotal };

struct Call {
  const Kernels* kernels;
  ActivateJob job;  // of the first image
  size_t pixels_per_task, tasks_per_image;
};

void RunTask(void* user, size_t task) {
  const Call& call = *static_cast<const Call*>(user);
  ActivateJob job = call.job;
  const size_t image = task / call.tasks_per_image, first = task % call.tasks_per_image * call.pixels_per_task;
  const size_t pixel = image * call.job.pixels + first, at = pixel * job.channels;
  job.pixels = std::min(call.pixels_per_task, call.job.pixels - first);
  job.x = static_cast<const char*>(job.x) + pixel * job.x_step * SizeOf(job.x_element);
  if (job.gate != nullptr) job.gate += image * job.channels;
  if (job.residual != nullptr) job.residual = static_cast<const char*>(job.residual) + at * SizeOf(job.stream);
  if (job.y != nullptr) job.y = static_cast<char*>(job.y) + at * SizeOf(job.stream);
  if (job.bits != nullptr) job.bits += pixel * job.planes * job.words;
  if (job.link != nullptr) job.link = static_cast<char*>(job.link) + pixel * job.link_channels * SizeOf(job.stream);
  call.kernels->activate(job);
}

// X is the element type of x, STREAM that of residual and y: one operator is registered per pair. LINK: the last input is
// there, and y is the link of what else it would be.
template <int32_t X, int32_t STREAM, bool LINK>
class Activate {
 public:
  static constexpr const char* kName = LINK ? "ActivateLink" : "Activate";
  static constexpr size_t kInputCount = LINK ? kInputTotal : kGamma, kOutputCount = kOutputTotal;
  static constexpr Port kInputs[kInputTotal] = {{X, kRequired},      {kFloat, kRequired}, {kFloat, kRequired},
                                                {kFloat, kRequired}, {STREAM, kRequired}, {kFloat, kRequired},
                                                {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}};
  static constexpr Port kOutputs[kOutputTotal] = {{STREAM, kOptional}, {kUint64, kOptional}};

  Activate(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(SelectIsaFromEnvironment().kernels),
        channels_(IntAttribute(api, info, "channels", nullptr)),
        has_gate_(!IsNeutral(api, info, kGate, 1.0f)),
        has_residual_(!IsNeutral(api, info, kResidual, 0.0f)) {
    RequireRange("attribute channels", channels_, 1, kMaxExtent);
    Read(info, kScale, "scale", &scale_);
    Read(info, kBias, "bias", &bias_);
    Read(info, kSlope, "slope", &slope_);
    Read(info, kShift, "shift", &shift_);
    const auto thresholds = PlaneParameter(api, info, kNextThreshold, "next_threshold", channels_, &planes_);
    Expand(thresholds, planes_, channels_, 0.0f, &threshold_);
    if (STREAM == kFloat16) {
      for (float& threshold : threshold_) threshold = ThresholdBeforeRounding(threshold);
    }
    if (LINK) ReadGamma(info);
  }

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadInput(api_, context, kX, "x");
    Require(x.dims.size() == 4 && x.dims[3] >= channels_, [&] {
      return "input x must have the shape [N,H,W," + std::to_string(channels_) + " or more], has " + ShapeText(x.dims);
    });
    const int64_t images = x.dims[0];
    const std::vector<int64_t> dims = {images, x.dims[1], x.dims[2], channels_};
    const std::vector<int64_t> factors = {images, 1, 1, channels_};
    Call call{};
    call.kernels = kernels_;
    ActivateJob& job = call.job;
    job.x_element = ElementOf(X);
    job.stream = ElementOf(STREAM);
    job.x = x.data;
    job.gate = has_gate_ ? ReadInput(api_, context, kGate, "gate", factors).floats() : nullptr;
    job.residual = has_residual_ ? ReadInput(api_, context, kResidual, "residual", dims).data : nullptr;
    job.scale = scale_.data(), job.bias = bias_.data();
    job.slope = slope_.data(), job.shift = shift_.data(), job.threshold = threshold_.data();
    const int64_t words = WordsFor(channels_), row = planes_ * words;
    job.gamma = gamma_.data();
    job.link_channels = gamma_.size();
    const int64_t link_channels = static_cast<int64_t>(gamma_.size());
    if (LINK) job.link = MakeOutput(api_, context, kY, {images, x.dims[1], x.dims[2], link_channels});
    if (!LINK) job.y = MakeOutput(api_, context, kY, dims);
    Require(job.y != job.x || job.x == nullptr || x.dims[3] == channels_, [&] {
      return "input x has the shape " + ShapeText(x.dims) + ", and the graph promised " + ShapeText(dims);
    });
    job.bits = static_cast<uint64_t*>(MakeOutput(api_, context, kNextBits, {images, x.dims[1], x.dims[2], row}));
    job.channels = static_cast<size_t>(channels_);
    job.words = static_cast<size_t>(words);
    job.planes = static_cast<size_t>(planes_);
    job.x_step = static_cast<size_t>(x.dims[3]);
    if (x.size() == 0 || (job.y == nullptr && job.bits == nullptr && job.link == nullptr)) return;
    job.pixels = static_cast<size_t>(x.dims[1] * x.dims[2]);
    const PixelTasks tasks(job.pixels, job.channels * SizeOf(job.x_element));
    call.pixels_per_task = tasks.pixels_per_task;
    call.tasks_per_image = tasks.count;
    RunTasks(api_, context, RunTask, static_cast<size_t>(images) * tasks.count, &call);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, kX);
    if (dims.size() != 4) return;
    const Dim channels = {ReadInt(api, context, "channels", -1), ""};
    dims[3] = BitsOf(channels, InputDims(api, context, kNextThreshold));
    SetOutput(api, context, kNextBits, kUint64, dims);
    const std::vector<Dim> gamma = LINK ? InputDims(api, context, kGamma) : std::vector<Dim>{channels};
    if (gamma.size() != 1) return;
    dims[3] = gamma[0];
    SetOutput(api, context, kY, InputType(api, context, kResidual, STREAM), dims);
  }

 private:
  // Its length says how many channels the link has.
  void ReadGamma(const OrtKernelInfo* info) {
    const Tensor gamma = RequiredConstant(api_, info, kGamma, "gamma", kFloat);
    const int64_t channels = gamma.dims.size() == 1 ? gamma.dims[0] : 0;
    Require(channels > 0 && channels % kLanes == 0 && channels <= channels_, [&] {
      return "input gamma must have one dimension, a multiple of " + std::to_string(kLanes) + " up to " +
             std::to_string(channels_) + ", has " + ShapeText(gamma.dims);
    });
    gamma_.assign(gamma.floats(), gamma.floats() + channels);
  }

  void Read(const OrtKernelInfo* info, Input index, const char* name, AlignedVector<float>* values) const {
    Expand(ChannelParameter(api_, info, index, name, channels_), 1, channels_, 0.0f, values);
  }

  const OrtApi& api_;
  const Kernels* kernels_;
  const int64_t channels_;
  const bool has_gate_, has_residual_;
  int64_t planes_ = 1;  // of the next bits
  AlignedVector<float> scale_, bias_, slope_, shift_, threshold_;
  AlignedVector<float> gamma_;  // of a link
};

// y may take the memory of residual, or of an x of its own type and shape: every element is read before it is written,
// by the same thread.
template <int32_t X, int32_t STREAM>
const OrtCustomOp* Make() {
  using Op = CustomOp<Activate<X, STREAM, false>>;
  static const OrtCustomOp op = X == STREAM ? WithInPlace<kResidual, kX>(Op::Make()) : WithInPlace<kResidual>(Op::Make());
  return &op;
}

template <int32_t X, int32_t STREAM>
const OrtCustomOp* MakeLink() {
  static const OrtCustomOp op = CustomOp<Activate<X, STREAM, true>>::Make();
  return &op;
}

}  // namespace

const OrtCustomOp* ActivateOp() { return Make<kFloat, kFloat>(); }
const OrtCustomOp* ActivateHalfOp() { return Make<kFloat16, kFloat16>(); }
const OrtCustomOp* ActivateNarrowOp() { return Make<kFloat, kFloat16>(); }
const OrtCustomOp* ActivateLinkOp() { return MakeLink<kFloat, kFloat>(); }
const OrtCustomOp* ActivateLinkHalfOp() { return MakeLink<kFloat16, kFloat16>(); }
const OrtCustomOp* ActivateLinkNarrowOp() { return MakeLink<kFloat, kFloat16>(); }

}  // namespace ort
}  // namespace binarize
