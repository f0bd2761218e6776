// The operator Gate: the factor per image and channel that squeeze-excite and Real-to-Binary compute from a map.
#include <algorithm>

#include "core/dispatch.h"
#include "core/gate.h"
#include "core/plan.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t { kX, kReduce, kReduceBias, kExpand, kExpandBias, kInputTotal };

// A layer of the gate: a matrix, [inputs][outputs], and what is done to its outputs.
struct Layer {
  size_t input = 0;           // which the matrix is of the node's; read anew in each call, so that no copy is kept
  const char* name = "";
  std::vector<int64_t> dims;
  std::vector<float> bias;    // [outputs]
  void (*activate)(float* t, size_t count) noexcept = nullptr;

  size_t inputs() const { return static_cast<size_t>(dims[0]); }
  size_t outputs() const { return static_cast<size_t>(dims[1]); }
};

Layer ReadLayer(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* name, const char* bias_name) {
  Layer layer;
  layer.input = index, layer.name = name;
  layer.dims = RequiredConstant(api, info, index, name, kFloat).dims;
  Require(layer.dims.size() == 2, [&] {
    return std::string("input ") + name + " must have two dimensions, has " + ShapeText(layer.dims);
  });
  const std::string extents = std::string("an extent of input ") + name;
  for (int64_t extent : layer.dims) RequireRange(extents.c_str(), extent, 1, kMaxExtent);
  layer.bias = ChannelParameter(api, info, index + 1, bias_name, layer.dims[1]);
  layer.bias.resize(layer.outputs(), layer.bias[0]);
  return layer;
}

// Sums of the rows of all images.
struct RowsCall {
  void (*kernel)(const RowSumsJob& job);
  RowSumsJob job;
  size_t rows, rows_per_task;

  static void RunTask(void* user, size_t task) {
    const RowsCall& call = *static_cast<const RowsCall*>(user);
    RowSumsJob job = call.job;
    job.first_row = task * call.rows_per_task;
    job.last_row = std::min(job.first_row + call.rows_per_task, call.rows);
    call.kernel(job);
  }
};

// The partial sums of a layer for all images, in tasks of one each or, of a small one, of an image's.
struct LayerCall {
  void (*kernel)(const ProjectJob& job);
  const float *x, *weight;
  float* sums;  // [images][kPartialSums][outputs]
  size_t inputs, outputs, sums_per_task;

  static void RunTask(void* user, size_t task) {
    const LayerCall& call = *static_cast<const LayerCall*>(user);
    for (size_t i = 0; i < call.sums_per_task; ++i) call.Sum(task * call.sums_per_task + i);
  }

  void Sum(size_t index) const {
    const size_t image = index / kPartialSums, part = index % kPartialSums;
    const size_t most = (inputs + kPartialSums - 1) / kPartialSums;
    const size_t first = std::min(part * most, inputs), last = std::min(first + most, inputs);
    kernel({x + image * inputs + first, weight + first * outputs, sums + index * outputs, last - first, outputs});
  }
};

// TYPE is the element type of the map.
template <int32_t TYPE>
class Gate {
 public:
  static constexpr char kName[] = "Gate";
  static constexpr size_t kInputCount = kInputTotal, kOutputCount = 1;
  static constexpr Port kInputs[kInputTotal] = {
      {TYPE, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}, {kFloat, kRequired}};
  static constexpr Port kOutputs[1] = {{kFloat, kRequired}};

  Gate(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        kernels_(*SelectIsaFromEnvironment().kernels),
        reduce_(ReadLayer(api, info, kReduce, "reduce", "reduce_bias")),
        expand_(ReadLayer(api, info, kExpand, "expand", "expand_bias")) {
    Require(expand_.inputs() == reduce_.outputs(), [&] {
      return "input expand must have a row for each column of reduce, " + std::to_string(reduce_.outputs()) +
             ", has the shape " + ShapeText(expand_.dims);
    });
    const int64_t no = 0;
    const int64_t silu = IntAttribute(api, info, "silu", &no), hard = IntAttribute(api, info, "hard", &no);
    RequireRange("attribute silu", silu, 0, 1);
    RequireRange("attribute hard", hard, 0, 1);
    reduce_.activate = silu != 0 ? Silu : Relu;
    expand_.activate = hard != 0 ? HardSigmoid : Sigmoid;
    Check(api, api.CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, &memory_));
  }
  ~Gate() { api_.ReleaseMemoryInfo(memory_); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadInput(api_, context, kX, "x");
    Require(x.dims.size() == 4 && x.dims[3] == reduce_.dims[0], [&] {
      return "input x must have the shape [N,H,W," + std::to_string(reduce_.dims[0]) + "], has " + ShapeText(x.dims);
    });
    RequireRange("height of the map", x.dims[1], 1, kMaxExtent);
    RequireRange("width of the map", x.dims[2], 1, kMaxExtent);
    float* y = static_cast<float*>(MakeOutput(api_, context, 0, {x.dims[0], 1, 1, expand_.dims[1]}));
    if (x.dims[0] == 0) return;

    const size_t images = static_cast<size_t>(x.dims[0]), height = static_cast<size_t>(x.dims[1]);
    const size_t rows = images * height, channels = reduce_.inputs();
    const size_t outputs = std::max(reduce_.outputs(), expand_.outputs());
    const size_t floats = rows * channels + images * (channels + reduce_.outputs() + kPartialSums * outputs);
    const Scratch scratch(api_, context, memory_, floats * sizeof(float));
    float* row_sums = static_cast<float*>(scratch.data());
    float* means = row_sums + rows * channels;
    float* hidden = means + images * channels;
    float* sums = hidden + images * reduce_.outputs();
    SumRows(context, x, rows, row_sums);
    const float share = 1.0f / static_cast<float>(x.dims[1] * x.dims[2]);
    for (size_t n = 0; n < images; ++n) {
      JoinRows(row_sums + n * height * channels, height, channels, share, means + n * channels);
    }
    Run(context, reduce_, images, means, sums, hidden);
    Run(context, expand_, images, hidden, sums, y);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, kX);
    const std::vector<Dim> expand = InputDims(api, context, kExpand);
    if (dims.size() != 4 || expand.size() != 2) return;
    SetOutput(api, context, 0, kFloat, {dims[0], {1, ""}, {1, ""}, expand[1]});
  }

 private:
  void SumRows(OrtKernelContext* context, const Tensor& x, size_t rows, float* sums) const {
    RowsCall call{};
    call.kernel = kernels_.row_sums;
    call.job.element = ElementOf(TYPE);
    call.job.x = x.data, call.job.sums = sums;
    call.job.width = static_cast<size_t>(x.dims[2]), call.job.channels = reduce_.inputs();
    const PixelTasks tasks(rows, call.job.width * call.job.channels * SizeOf(call.job.element));
    call.rows = rows, call.rows_per_task = tasks.pixels_per_task;
    RunTasks(api_, context, RowsCall::RunTask, tasks.count, &call);
  }

  void Run(OrtKernelContext* context, const Layer& layer, size_t images, const float* x, float* sums, float* y) const {
    constexpr size_t kLeastBytes = 32 * 1024;  // of a task
    const float* weight = ReadInput(api_, context, layer.input, layer.name, layer.dims).floats();
    const size_t inputs = layer.inputs(), outputs = layer.outputs();
    const bool small = inputs * outputs * sizeof(float) < kPartialSums * kLeastBytes;
    LayerCall call{kernels_.project, x, weight, sums, inputs, outputs, small ? kPartialSums : 1};
    RunTasks(api_, context, LayerCall::RunTask, images * kPartialSums / call.sums_per_task, &call);
    for (size_t n = 0; n < images; ++n, sums += kPartialSums * outputs, y += outputs) {
      JoinPartialSums(sums, layer.bias.data(), outputs, y);
      layer.activate(y, outputs);
    }
  }

  const OrtApi& api_;
  const Kernels& kernels_;
  Layer reduce_, expand_;
  OrtMemoryInfo* memory_ = nullptr;
};

template <int32_t TYPE>
const OrtCustomOp* Make() {
  static const OrtCustomOp op = CustomOp<Gate<TYPE>>::Make();
  return &op;
}

}  // namespace

const OrtCustomOp* GateOp() { return Make<kFloat>(); }
const OrtCustomOp* GateHalfOp() { return Make<kFloat16>(); }

}  // namespace ort
}  // namespace binarize
