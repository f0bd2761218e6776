// The operators MaxPool and AveragePool: like the standard ones, on NHWC maps.
#include <algorithm>

#include "core/dispatch.h"
#include "core/plan.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

constexpr int64_t kTasks = 16;  // enough to balance a few threads

struct Window {
  std::vector<int64_t> kernel{0, 0}, strides{1, 1}, pads{0, 0, 0, 0}, dilations{1, 1};

  int64_t Extent(int64_t size, size_t axis) const {
    return OutputExtent(size, kernel[axis], strides[axis], pads[axis], pads[axis + 2], dilations[axis]);
  }
};

Window ReadWindow(const OrtApi& api, const OrtKernelInfo* info, bool dilated) {
  Window w;
  w.kernel = IntsAttribute(api, info, "kernel_shape", w.kernel);
  w.strides = IntsAttribute(api, info, "strides", w.strides);
  w.pads = IntsAttribute(api, info, "pads", w.pads);
  if (dilated) w.dilations = IntsAttribute(api, info, "dilations", w.dilations);
  RefuseAttributes(api, info, {"auto_pad", "ceil_mode", "storage_order"});
  if (!dilated) RefuseAttributes(api, info, {"dilations"});
  for (int64_t v : w.kernel) RequireRange("attribute kernel_shape", v, 1, kMaxExtent);
  for (int64_t v : w.strides) RequireRange("attribute strides", v, 1, kMaxExtent);
  for (int64_t v : w.pads) RequireRange("attribute pads", v, 0, kMaxExtent);
  for (int64_t v : w.dilations) RequireRange("attribute dilations", v, 1, kMaxExtent);
  return w;
}

struct Call {
  void (*kernel)(const PoolJob& job);
  PoolJob job;  // of the first image
  size_t out_h, rows_per_task, tasks_per_image;
};

void RunTask(void* user, size_t task) {
  const Call& call = *static_cast<const Call*>(user);
  PoolJob job = call.job;
  const size_t image = task / call.tasks_per_image;
  job.first_row = task % call.tasks_per_image * call.rows_per_task;
  job.last_row = std::min(job.first_row + call.rows_per_task, call.out_h);
  const size_t size = SizeOf(job.element) * job.channels;
  job.x = static_cast<const char*>(job.x) + image * job.map_h * job.map_w * size;
  job.y = static_cast<char*>(job.y) + image * call.out_h * job.out_w * size;
  call.kernel(job);
}

struct Max {
  static constexpr char kName[] = "MaxPool";
  static constexpr bool kDilated = true, kAverage = false;
};
struct Average {
  static constexpr char kName[] = "AveragePool";
  static constexpr bool kDilated = false, kAverage = true;
};

template <typename Kind, int32_t TYPE>
class Pool {
 public:
  static constexpr const char* kName = Kind::kName;
  static constexpr size_t kInputCount = 1, kOutputCount = 1;
  static constexpr Port kInputs[kInputCount] = {{TYPE, kRequired}};
  static constexpr Port kOutputs[kOutputCount] = {{TYPE, kRequired}};

  Pool(const OrtApi& api, const OrtKernelInfo* info) : api_(api), window_(ReadWindow(api, info, Kind::kDilated)) {
    const Kernels& kernels = *SelectIsaFromEnvironment().kernels;
    kernel_ = Kind::kAverage ? kernels.average_pool : kernels.max_pool;
    const int64_t no = 0;
    if (Kind::kAverage) counts_padding_ = IntAttribute(api, info, "count_include_pad", &no) != 0;
  }

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadInput(api_, context, 0, "x");
    Require(x.dims.size() == 4, [&] { return "input x must have the shape [N,H,W,C], has " + ShapeText(x.dims); });
    RequireRange("height of the map", x.dims[1], 1, kMaxExtent);
    RequireRange("width of the map", x.dims[2], 1, kMaxExtent);
    const int64_t out_h = window_.Extent(x.dims[1], 0), out_w = window_.Extent(x.dims[2], 1);
    Require(out_h > 0 && out_w > 0, [&] { return "the window does not fit a map of shape " + ShapeText(x.dims); });
    const std::vector<int64_t> dims = {x.dims[0], out_h, out_w, x.dims[3]};
    void* y = MakeOutput(api_, context, 0, dims);
    if (x.size() == 0) return;

    Call call{};
    call.kernel = kernel_;
    PoolJob& job = call.job;
    job.element = ElementOf(TYPE);
    job.x = x.data;
    job.y = y;
    job.map_h = static_cast<size_t>(x.dims[1]), job.map_w = static_cast<size_t>(x.dims[2]);
    job.channels = static_cast<size_t>(x.dims[3]);
    job.out_w = static_cast<size_t>(out_w);
    job.kernel_h = static_cast<size_t>(window_.kernel[0]), job.kernel_w = static_cast<size_t>(window_.kernel[1]);
    job.stride_h = static_cast<size_t>(window_.strides[0]), job.stride_w = static_cast<size_t>(window_.strides[1]);
    job.pad_top = static_cast<size_t>(window_.pads[0]), job.pad_left = static_cast<size_t>(window_.pads[1]);
    job.dilation_h = static_cast<size_t>(window_.dilations[0]);
    job.dilation_w = static_cast<size_t>(window_.dilations[1]);
    job.whole_window = counts_padding_ ? job.kernel_h * job.kernel_w : 0;
    call.out_h = static_cast<size_t>(out_h);
    call.rows_per_task = static_cast<size_t>(std::max<int64_t>(1, x.dims[0] * out_h / kTasks));
    call.tasks_per_image = (call.out_h + call.rows_per_task - 1) / call.rows_per_task;
    const size_t tasks = static_cast<size_t>(x.dims[0]) * call.tasks_per_image;
    RunTasks(api_, context, RunTask, tasks, &call);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, 0);
    Window w;
    ReadInts(api, context, "kernel_shape", &w.kernel);
    ReadInts(api, context, "strides", &w.strides);
    ReadInts(api, context, "pads", &w.pads);
    if (Kind::kDilated) ReadInts(api, context, "dilations", &w.dilations);
    if (dims.size() != 4 || !Sensible(w)) return;
    for (size_t axis = 0; axis < 2; ++axis) {
      Dim& extent = dims[axis + 1];
      if (!extent.known() || extent.value > kMaxExtent) return;  // H and W are settled in our exports
      extent.value = w.Extent(extent.value, axis);
      if (extent.value <= 0) return;
    }
    SetOutput(api, context, 0, InputType(api, context, 0, TYPE), dims);
  }

 private:
  static bool Sensible(const Window& w) {
    const auto within = [](const std::vector<int64_t>& values, int64_t least) {
      return std::all_of(values.begin(), values.end(), [least](int64_t v) { return v >= least && v <= kMaxExtent; });
    };
    return within(w.kernel, 1) && within(w.strides, 1) && within(w.pads, 0) && within(w.dilations, 1);
  }

  const OrtApi& api_;
  const Window window_;
  void (*kernel_)(const PoolJob& job);
  bool counts_padding_ = false;
};

template <typename Kind, int32_t TYPE>
const OrtCustomOp* Make() {
  static const OrtCustomOp op = CustomOp<Pool<Kind, TYPE>>::Make();
  return &op;
}

}  // namespace

const OrtCustomOp* MaxPoolOp() { return Make<Max, kFloat>(); }
const OrtCustomOp* MaxPoolHalfOp() { return Make<Max, kFloat16>(); }
const OrtCustomOp* AveragePoolOp() { return Make<Average, kFloat>(); }
const OrtCustomOp* AveragePoolHalfOp() { return Make<Average, kFloat16>(); }

}  // namespace ort
}  // namespace binarize
