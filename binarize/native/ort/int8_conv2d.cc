// The operator Int8Conv2d: a float image, NCHW, in; the map of a float conv computed in int8, NHWC, out.
#include "core/int8_conv.h"

#include "core/bits.h"
#include "core/dispatch.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t {
  kImage, kFactor, kZeroPoint, kWeight, kScale, kBias, kResidual, kSlope, kShift, kNextThreshold, kInputTotal
};
constexpr const char* kInputNames[kInputTotal] = {"image", "factor",   "zero_point", "weight", "scale",
                                                  "bias",  "residual", "slope",      "shift",  "next_threshold"};
enum Output : size_t { kY, kNextBits, kOutputTotal };

Tensor One(const OrtApi& api, const OrtKernelInfo* info, Input index, int32_t type) {
  const Tensor t = RequiredConstant(api, info, index, kInputNames[index], type);
  Require(t.dims == std::vector<int64_t>{1},
          std::string("input ") + kInputNames[index] + " must have the shape [1], has " + ShapeText(t.dims));
  return t;
}

// The windows of the two stages; shape inference reads them too.
struct Windows {
  std::vector<int64_t> strides{1, 1}, pads{0, 0, 0, 0};
  std::vector<int64_t> pool_shape{1, 1}, pool_strides{1, 1}, pool_pads{0, 0, 0, 0};
};

Int8Spec ReadSpec(const OrtApi& api, const OrtKernelInfo* info, const Tensor& weight) {
  const Windows defaults;
  const auto ints = [&](const char* name, const std::vector<int64_t>& fallback) {
    return IntsAttribute(api, info, name, fallback);
  };
  const auto strides = ints("strides", defaults.strides), pads = ints("pads", defaults.pads);
  const auto shape = ints("pool_shape", defaults.pool_shape), steps = ints("pool_strides", defaults.pool_strides);
  const auto pool_pads = ints("pool_pads", defaults.pool_pads);
  RefuseAttributes(api, info, {"auto_pad", "dilations", "group", "kernel_shape"});
  Int8Spec s;
  s.channels_out = weight.dims[0], s.channels_in = weight.dims[1];
  s.kernel_h = weight.dims[2], s.kernel_w = weight.dims[3];
  s.stride_h = strides[0], s.stride_w = strides[1];
  s.pad_top = pads[0], s.pad_left = pads[1], s.pad_bottom = pads[2], s.pad_right = pads[3];
  s.pool_h = shape[0], s.pool_w = shape[1];
  s.pool_stride_h = steps[0], s.pool_stride_w = steps[1];
  s.pool_top = pool_pads[0], s.pool_left = pool_pads[1], s.pool_bottom = pool_pads[2], s.pool_right = pool_pads[3];
  const int64_t no = 0, pools_values = IntAttribute(api, info, "pools_values", &no);
  Require(pools_values == 0 || pools_values == 1,
          "attribute pools_values must be 0 or 1, got " + std::to_string(pools_values));
  s.pools_values = pools_values == 1;
  s.factor = *One(api, info, kFactor, kFloat).floats();
  s.zero_point = *static_cast<const uint8_t*>(One(api, info, kZeroPoint, kUint8).data);
  return s;
}

std::unique_ptr<const Int8Plan> MakePlan(const OrtApi& api, const OrtKernelInfo* info, Element element) {
  const Tensor weight = RequiredConstant(api, info, kWeight, kInputNames[kWeight], kInt8);
  Require(weight.dims.size() == 4 && weight.size() > 0,
          "input weight must have the shape [O,C,kh,kw], has " + ShapeText(weight.dims));
  const Int8Spec spec = ReadSpec(api, info, weight);
  const auto parameter = [&](Input index) {
    return ChannelParameter(api, info, index, kInputNames[index], spec.channels_out);
  };
  ConvParameters p;
  p.scale = parameter(kScale);
  p.bias = parameter(kBias);
  p.slope = parameter(kSlope);
  p.shift = parameter(kShift);
  p.next_threshold =
      PlaneParameter(api, info, kNextThreshold, kInputNames[kNextThreshold], spec.channels_out, &p.next_planes);
  p.element = element;
  const Kernels& kernels = *SelectIsaFromEnvironment().kernels;
  return std::make_unique<const Int8Plan>(spec, p, static_cast<const int8_t*>(weight.data), kernels);
}

struct Call {
  const Int8Run& run;
  Int8Tensors tensors;  // of one image
  void* scratch;
};

void RunTask(void* user, size_t task) {
  const Call& call = *static_cast<const Call*>(user);
  call.run.RunTask(call.tensors, call.scratch, task);
}

// STREAM is the element type of residual and y: one operator is registered per type.
template <int32_t STREAM>
class Int8Conv2d {
 public:
  static constexpr char kName[] = "Int8Conv2d";
  static constexpr Element kElement = STREAM == kFloat16 ? Element::kFloat16 : Element::kFloat32;
  static constexpr size_t kInputCount = kInputTotal, kOutputCount = kOutputTotal;
  static constexpr Port kInputs[kInputTotal] = {
      {kFloat, kRequired}, {kFloat, kRequired}, {kUint8, kRequired}, {kInt8, kRequired}, {kFloat, kRequired},
      {kFloat, kRequired}, {STREAM, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}};
  static constexpr Port kOutputs[kOutputTotal] = {{STREAM, kOptional}, {kUint64, kOptional}};

  Int8Conv2d(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api), plan_(MakePlan(api, info, kElement)), has_residual_(!IsNeutral(api, info, kResidual, 0.0f)) {
    Check(api, api.CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, &memory_));
  }
  ~Int8Conv2d() { api_.ReleaseMemoryInfo(memory_); }
  Int8Conv2d(const Int8Conv2d&) = delete;
  Int8Conv2d& operator=(const Int8Conv2d&) = delete;

  void Compute(OrtKernelContext* context) const {
    const Int8Spec& spec = plan_->spec();
    const Tensor image = ReadInput(api_, context, kImage, kInputNames[kImage]);
    Require(image.dims.size() == 4 && image.dims[1] == spec.channels_in, [&] {
      return "input image must have the shape [N," + std::to_string(spec.channels_in) + ",H,W], has " +
             ShapeText(image.dims);
    });
    const int64_t images = image.dims[0];
    const Int8Run run(*plan_, image.dims[2], image.dims[3]);
    std::vector<int64_t> dims = {images, run.out_h(), run.out_w(), spec.channels_out};
    Call call{run, {}, nullptr};
    Int8Tensors& t = call.tensors;
    t.x = image.floats();
    if (has_residual_) t.residual = ReadInput(api_, context, kResidual, kInputNames[kResidual], dims).data;
    t.y = MakeOutput(api_, context, kY, dims);
    const int64_t pixels = run.out_h() * run.out_w();
    const int64_t words = WordsFor(spec.channels_out) * static_cast<int64_t>(plan_->constant().epilogue.next_planes);
    dims[3] = words;
    t.next_bits = static_cast<uint64_t*>(MakeOutput(api_, context, kNextBits, dims));
    if (images == 0 || (t.y == nullptr && t.next_bits == nullptr)) return;

    const Scratch scratch(api_, context, memory_, run.scratch_bytes());
    call.scratch = scratch.data();
    const int64_t image_size = image.size() / images;
    const size_t map_bytes = static_cast<size_t>(pixels * spec.channels_out) * SizeOf(kElement);
    for (int64_t n = 0; n < images; ++n) {  // one at a time: scratch memory is that of one image
      RunTasks(api_, context, RunTask, run.task_count(), &call);
      t.x += image_size;
      if (t.residual != nullptr) t.residual = static_cast<const char*>(t.residual) + map_bytes;
      if (t.y != nullptr) t.y = static_cast<char*>(t.y) + map_bytes;
      if (t.next_bits != nullptr) t.next_bits += pixels * words;
    }
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    const std::vector<Dim> image = InputDims(api, context, kImage), weight = InputDims(api, context, kWeight);
    if (image.size() != 4 || weight.size() != 4 || !weight[0].known()) return;
    Windows w;
    ReadInts(api, context, "strides", &w.strides);
    ReadInts(api, context, "pads", &w.pads);
    ReadInts(api, context, "pool_shape", &w.pool_shape);
    ReadInts(api, context, "pool_strides", &w.pool_strides);
    ReadInts(api, context, "pool_pads", &w.pool_pads);
    std::vector<Dim> y = {image[0], Dim{}, Dim{}, weight[0]};
    for (size_t axis = 0; axis < 2; ++axis) {
      const Dim &size = image[axis + 2], &kernel = weight[axis + 2];
      const int64_t sums = Extent(size.value, kernel.value, w.strides, w.pads, axis);
      y[axis + 1].value = Extent(sums, w.pool_shape[axis], w.pool_strides, w.pool_pads, axis);
      if (y[axis + 1].value <= 0) return;  // unknown, or refused at kernel creation or by the run
    }
    SetOutput(api, context, kY, InputType(api, context, kResidual, STREAM), y);
    y[3] = BitsOf(y[3], InputDims(api, context, kNextThreshold));
    SetOutput(api, context, kNextBits, kUint64, y);
  }

 private:
  // 0 for what makes no sense.
  static int64_t Extent(int64_t size, int64_t kernel, const std::vector<int64_t>& strides,
                        const std::vector<int64_t>& pads, size_t axis) {
    const int64_t begin = pads[axis], end = pads[axis + 2], stride = strides[axis];
    for (int64_t v : {size, kernel, stride}) {
      if (v < 1 || v > kMaxExtent) return 0;
    }
    for (int64_t v : {begin, end}) {
      if (v < 0 || v > kMaxExtent) return 0;
    }
    return OutputExtent(size, kernel, stride, begin, end, 1);
  }

  const OrtApi& api_;
  const std::unique_ptr<const Int8Plan> plan_;
  const bool has_residual_;
  OrtMemoryInfo* memory_ = nullptr;
};

}  // namespace

const OrtCustomOp* Int8Conv2dOp() {
  static const OrtCustomOp op = CustomOp<Int8Conv2d<kFloat>>::Make();
  return &op;
}

const OrtCustomOp* Int8Conv2dHalfOp() {
  static const OrtCustomOp op = CustomOp<Int8Conv2d<kFloat16>>::Make();
  return &op;
}

}  // namespace ort
}  // namespace binarize
