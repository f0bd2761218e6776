// The operator BinaryConv2d: reads and checks a node once, then turns each call into tasks of the core.
#include <limits>
#include <memory>

#include "core/bits.h"
#include "core/dispatch.h"
#include "core/geometry.h"
#include "core/half.h"
#include "core/keep.h"
#include "core/plan.h"
#include "core/run.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t {
  kBits, kWeight, kScale, kBias, kLink, kGamma, kResidual, kSlope, kShift, kNextThreshold, kGate, kFactor, kInputTotal
};
constexpr const char* kInputNames[kInputTotal] = {"bits",     "weight", "scale", "bias",           "link", "gamma",
                                                  "residual", "slope",  "shift", "next_threshold", "gate", "factor"};
enum Output : size_t { kY, kNextBits, kOutputTotal };

Tensor ReadWeight(const OrtApi& api, const OrtKernelInfo* info, const ConvSpec& spec) {
  const Tensor weight = RequiredConstant(api, info, kWeight, kInputNames[kWeight], kUint64);
  const int64_t words = WordsFor(spec.channels_in);
  Require(weight.dims.size() == 4 && weight.dims[3] == words && weight.size() > 0,
          "input weight must have the shape [bases*O/group,kh,kw," + std::to_string(words) + "] for " +
              std::to_string(spec.channels_in) + " channels, has " + ShapeText(weight.dims));
  Require(weight.dims[0] % spec.bases == 0, "input weight has " + std::to_string(weight.dims[0]) +
                                                " rows, which is no multiple of its " + std::to_string(spec.bases) +
                                                " bases");
  return weight;
}

// [1], [O] or, for several terms, [terms, O].
std::vector<float> ReadScale(const OrtApi& api, const OrtKernelInfo* info, const ConvSpec& spec) {
  const Tensor t = ConstantInput(api, info, kScale);
  const std::vector<int64_t> by_term = {spec.terms(), spec.channels_out};
  if (spec.terms() == 1 || t.data == nullptr || t.type != kFloat || t.dims != by_term) {
    return ChannelParameter(api, info, kScale, kInputNames[kScale], spec.channels_out);
  }
  return std::vector<float>(t.floats(), t.floats() + t.size());
}

ConvSpec ReadAttributes(const OrtApi& api, const OrtKernelInfo* info) {
  ConvSpec s;
  const int64_t one = 1;
  s.channels_in = IntAttribute(api, info, "channels", nullptr);
  s.group = IntAttribute(api, info, "group", &one);
  s.planes = IntAttribute(api, info, "planes", &one);
  s.bases = IntAttribute(api, info, "bases", &one);
  const int64_t zero = 0, ternary = IntAttribute(api, info, "ternary", &zero);
  s.first_plane = IntAttribute(api, info, "first_plane", &zero);
  Require(ternary == 0 || ternary == 1, "attribute ternary must be 0 or 1, got " + std::to_string(ternary));
  s.ternary = ternary == 1;
  RefuseAttributes(api, info, {"auto_pad", "kernel_shape"});
  const auto strides = IntsAttribute(api, info, "strides", {1, 1});
  const auto pads = IntsAttribute(api, info, "pads", {0, 0, 0, 0});
  const auto dilations = IntsAttribute(api, info, "dilations", {1, 1});
  s.stride_h = strides[0], s.stride_w = strides[1];
  s.pad_top = pads[0], s.pad_left = pads[1], s.pad_bottom = pads[2], s.pad_right = pads[3];
  s.dilation_h = dilations[0], s.dilation_w = dilations[1];
  ValidateSpec([&] {  // what can be checked before the weight is read
    ConvSpec early = s;
    early.channels_out = early.group;
    return early;
  }());
  return s;
}

// Files of before these inputs came list neither.
HasFactors FindFactors(const OrtApi& api, const OrtKernelInfo* info) {
  const auto is_there = [&](Input index) {
    return HasInput(api, info, index, kInputNames[index]) && !IsNeutral(api, info, index, 1.0f);
  };
  return {is_there(kGate), is_there(kFactor)};
}

std::unique_ptr<const ConvPlan> MakePlan(const OrtApi& api, const OrtKernelInfo* info, Element element,
                                         const Kernels& kernels) {
  ConvSpec spec = ReadAttributes(api, info);
  const Tensor weight = ReadWeight(api, info, spec);
  spec.channels_out = CheckedProduct(weight.dims[0] / spec.bases, spec.group, "number of output channels");
  spec.kernel_h = weight.dims[1];
  spec.kernel_w = weight.dims[2];
  ValidateSpec(spec);
  const auto parameter = [&](Input index) {
    return ChannelParameter(api, info, index, kInputNames[index], spec.channels_out);
  };
  ConvParameters p;
  p.scale = ReadScale(api, info, spec);
  p.bias = parameter(kBias);
  p.gamma = parameter(kGamma);
  p.slope = parameter(kSlope);
  p.shift = parameter(kShift);
  p.next_threshold =
      PlaneParameter(api, info, kNextThreshold, kInputNames[kNextThreshold], spec.channels_out, &p.next_planes);
  p.has_link = !IsNeutral(api, info, kLink, 0.0f);
  p.element = element;
  p.factors = FindFactors(api, info);
  return std::make_unique<const ConvPlan>(spec, p, weight.words(), kernels);
}

// STREAM is the element type of link, residual and y: one operator is registered per type.
template <int32_t STREAM>
class BinaryConv2d {
 public:
  static constexpr char kName[] = "BinaryConv2d";
  static constexpr Element kElement = STREAM == kFloat16 ? Element::kFloat16 : Element::kFloat32;
  static constexpr size_t kInputCount = kInputTotal, kOutputCount = kOutputTotal;
  static constexpr Port kInputs[kInputTotal] = {
      {kUint64, kRequired}, {kUint64, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {STREAM, kRequired},
      {kFloat, kRequired},  {STREAM, kRequired},  {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired},
      {kFloat, kOptional},  {kFloat, kOptional}};  // files of older versions lack the last two
  static constexpr Port kOutputs[kOutputTotal] = {{STREAM, kOptional}, {kUint64, kOptional}};

  BinaryConv2d(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        plan_(MakePlan(api, info, kElement, *SelectIsaFromEnvironment().kernels)),
        has_residual_(!IsNeutral(api, info, kResidual, 0.0f)) {
    Check(api, api.CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, &memory_));
  }
  ~BinaryConv2d() { api_.ReleaseMemoryInfo(memory_); }
  BinaryConv2d(const BinaryConv2d&) = delete;
  BinaryConv2d& operator=(const BinaryConv2d&) = delete;

  void Compute(OrtKernelContext* context) const {
    const ConvSpec& spec = plan_->spec();
    const Tensor bits = ReadInput(api_, context, kBits, kInputNames[kBits]);
    const int64_t words = WordsFor(spec.channels_in), planes = spec.first_plane + spec.bit_planes();
    Require(bits.dims.size() == 4 && bits.dims[3] % words == 0 && bits.dims[3] / words >= planes, [&] {
      return "input bits must have the shape [N,H,W,planes*" + std::to_string(words) + "] of at least " +
             std::to_string(planes) + " planes, has " + ShapeText(bits.dims);
    });
    const MapShape map{bits.dims[0], bits.dims[1], bits.dims[2], bits.dims[3] / words};
    std::unique_ptr<const ConvGeometry> own;
    const ConvGeometry& geometry = FindGeometry(map, own);

    ConvTensors tensors{};
    tensors.bits = bits.words();
    tensors.factors = ReadFactors(context, geometry);
    if (plan_->has_link()) {
      const std::vector<int64_t> dims = {map.n, map.h, map.w, spec.channels_in};
      tensors.link = ReadInput(api_, context, kLink, kInputNames[kLink], dims).data;
    }
    if (has_residual_) {
      const std::vector<int64_t> dims = {map.n, geometry.out_h, geometry.out_w, spec.channels_out};
      tensors.residual = ReadInput(api_, context, kResidual, kInputNames[kResidual], dims).data;
    }
    std::vector<int64_t> dims = {map.n, geometry.out_h, geometry.out_w, spec.channels_out};
    tensors.y = MakeOutput(api_, context, kY, dims);
    dims[3] = WordsFor(spec.channels_out) * static_cast<int64_t>(plan_->constant().next_planes);
    tensors.next_bits = static_cast<uint64_t*>(MakeOutput(api_, context, kNextBits, dims));
    if (map.n == 0 || (tensors.y == nullptr && tensors.next_bits == nullptr)) return;

    const Scratch scratch(api_, context, memory_, geometry.scratch_bytes);
    ConvRun run(geometry, tensors, scratch.data());
    const auto task = [](void* user, size_t index) { static_cast<const ConvRun*>(user)->RunTask(index); };
    RunTasks(api_, context, task, geometry.task_count, &run);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context);

 private:
  const ConvGeometry& FindGeometry(const MapShape& map, std::unique_ptr<const ConvGeometry>& own) const {
    const auto is_wanted = [&](const ConvGeometry& kept) { return kept.map == map; };
    const auto make = [&] { return std::make_unique<const ConvGeometry>(*plan_, map); };
    return geometries_.FindOrMake(is_wanted, make, own);
  }

  ConvFactors ReadFactors(OrtKernelContext* context, const ConvGeometry& geometry) const {
    const int64_t images = geometry.map.n;
    ConvFactors factors{};
    if (plan_->factors().gate) {
      const std::vector<int64_t> dims = {images, 1, 1, plan_->spec().channels_out};
      factors.gate = ReadInput(api_, context, kGate, kInputNames[kGate], dims).floats();
    }
    if (plan_->factors().pixels) {
      std::vector<int64_t> dims = {images, geometry.out_h, geometry.out_w, 1};
      const Tensor pixels = ReadInput(api_, context, kFactor, kInputNames[kFactor]);
      factors.pixels_of_one_image = !pixels.dims.empty() && pixels.dims[0] == 1;
      if (factors.pixels_of_one_image) dims[0] = 1;
      Require(pixels.dims == dims, [&] {
        return "input factor must have the shape " + ShapeText(dims) + ", has " + ShapeText(pixels.dims);
      });
      factors.pixels = pixels.floats();
    }
    return factors;
  }

  const OrtApi& api_;
  std::unique_ptr<const ConvPlan> plan_;
  bool has_residual_;
  KeptValues<ConvGeometry> geometries_;
  OrtMemoryInfo* memory_ = nullptr;
};

// An extent that stays equal keeps its symbol. One that changes gets the formula as its symbol: equal symbols
// must mean equal extents.
Dim InferExtent(const Dim& size, const Dim& kernel, int64_t stride, int64_t begin, int64_t end, int64_t dilation) {
  if (!kernel.known() || kernel.value == 0 || stride < 1 || dilation < 1) return Dim{};
  if (size.known()) {
    const int64_t extent = OutputExtent(size.value, kernel.value, stride, begin, end, dilation);
    return extent > 0 ? Dim{extent, ""} : Dim{};
  }
  if (size.name.empty()) return Dim{};
  const int64_t change = begin + end - dilation * (kernel.value - 1);
  if (change == 0 && stride == 1) return size;
  std::string room = size.name;
  if (change != 0) room = "(" + room + (change > 0 ? "+" : "-") + std::to_string(change > 0 ? change : -change) + ")";
  if (stride == 1) return Dim{-1, room};
  return Dim{-1, "ceil(" + room + "/" + std::to_string(stride) + ")"};  // floor((room - 1) / stride) + 1
}

bool Small(const std::vector<int64_t>& values) {
  constexpr int64_t kLimit = int64_t{1} << 20;  // larger values are refused at kernel creation
  for (int64_t v : values) {
    if (v < 0 || v > kLimit) return false;
  }
  return true;
}

template <int32_t STREAM>
void BinaryConv2d<STREAM>::InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
  const std::vector<Dim> bits = InputDims(api, context, kBits), weight = InputDims(api, context, kWeight);
  if (bits.size() != 4 || weight.size() != 4) return;
  std::vector<int64_t> strides{1, 1}, pads{0, 0, 0, 0}, dilations{1, 1};
  ReadInts(api, context, "strides", &strides);
  ReadInts(api, context, "pads", &pads);
  ReadInts(api, context, "dilations", &dilations);
  const int64_t group = ReadInt(api, context, "group", 1), bases = ReadInt(api, context, "bases", 1);
  if (bases < 1) return;
  std::vector<int64_t> sizes{group};
  for (const Dim& d : weight) sizes.push_back(d.known() ? d.value : 0);
  for (int axis = 1; axis <= 2; ++axis) sizes.push_back(bits[axis].known() ? bits[axis].value : 0);
  if (!Small(strides) || !Small(pads) || !Small(dilations) || !Small(sizes)) return;

  std::vector<Dim> y(4);
  y[0] = bits[0];
  y[1] = InferExtent(bits[1], weight[1], strides[0], pads[0], pads[2], dilations[0]);
  y[2] = InferExtent(bits[2], weight[2], strides[1], pads[1], pads[3], dilations[1]);
  if (weight[0].known()) y[3].value = weight[0].value / bases * group;
  const int32_t stream = InputType(api, context, kResidual, InputType(api, context, kLink, kUnknownType));
  if (stream != kUnknownType) SetOutput(api, context, kY, stream, y);
  y[3] = BitsOf(y[3], InputDims(api, context, kNextThreshold));
  SetOutput(api, context, kNextBits, kUint64, y);
}

// y may take the memory of residual: every element is read before it is written, by the same thread.
template <int32_t STREAM>
OrtCustomOp MakeConv() {
  return WithInPlace<kResidual>(CustomOp<BinaryConv2d<STREAM>>::Make());
}

}  // namespace

const OrtCustomOp* BinaryConv2dOp() {
  static const OrtCustomOp op = MakeConv<kFloat>();
  return &op;
}

const OrtCustomOp* BinaryConv2dHalfOp() {
  static const OrtCustomOp op = MakeConv<kFloat16>();
  return &op;
}

}  // namespace ort
}  // namespace binarize
