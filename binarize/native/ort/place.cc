// The operator Place: a map becomes channels of a wider one, in its memory where that is a temporary.
#include <algorithm>
#include <cstring>

#include "core/plan.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t { kX, kInto, kInputTotal };

struct Call {
  const char *x, *into;  // into is null when neutral
  char* y;
  size_t pixels, pixels_per_task;
  size_t before, placed, behind;  // bytes of a pixel
};

// Bytes of `pixel` that are not x's.
void Keep(const Call& call, size_t pixel, size_t offset, size_t bytes) {
  const size_t at = pixel * (call.before + call.placed + call.behind) + offset;
  if (call.into == nullptr) {
    std::memset(call.y + at, 0, bytes);
  } else if (call.into != call.y) {
    std::memcpy(call.y + at, call.into + at, bytes);
  }
}

void RunTask(void* user, size_t task) {
  const Call& call = *static_cast<const Call*>(user);
  const size_t first = task * call.pixels_per_task, last = std::min(first + call.pixels_per_task, call.pixels);
  const size_t step = call.before + call.placed + call.behind;
  for (size_t pixel = first; pixel < last; ++pixel) {
    Keep(call, pixel, 0, call.before);
    std::memcpy(call.y + pixel * step + call.before, call.x + pixel * call.placed, call.placed);
    Keep(call, pixel, call.before + call.placed, call.behind);
  }
}

// TYPE is the element type of all three maps.
template <int32_t TYPE>
class Place {
 public:
  static constexpr char kName[] = "Place";
  static constexpr size_t kInputCount = kInputTotal, kOutputCount = 1;
  static constexpr Port kInputs[kInputTotal] = {{TYPE, kRequired}, {TYPE, kRequired}};
  static constexpr Port kOutputs[1] = {{TYPE, kRequired}};

  Place(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        channels_(IntAttribute(api, info, "channels", nullptr)),
        first_(IntAttribute(api, info, "first", nullptr)),
        has_into_(!IsNeutral(api, info, kInto, 0.0f)) {
    RequireRange("attribute channels", channels_, 1, kMaxExtent);
    RequireRange("attribute first", first_, 0, channels_);
  }

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadInput(api_, context, kX, "x");
    Require(x.dims.size() == 4 && x.dims[3] <= channels_ - first_, [&] {
      return "input x must have the shape [N,H,W,C], C at most " + std::to_string(channels_ - first_) + ", has " +
             ShapeText(x.dims);
    });
    const std::vector<int64_t> dims = {x.dims[0], x.dims[1], x.dims[2], channels_};
    const size_t size = SizeOf(ElementOf(TYPE));
    Call call{};
    call.x = static_cast<const char*>(x.data);
    call.into = has_into_ ? static_cast<const char*>(ReadInput(api_, context, kInto, "into", dims).data) : nullptr;
    call.y = static_cast<char*>(MakeOutput(api_, context, 0, dims));
    call.pixels = static_cast<size_t>(CheckedProduct(CheckedProduct(dims[0], dims[1], "pixels"), dims[2], "pixels"));
    call.before = size * static_cast<size_t>(first_);
    call.placed = size * static_cast<size_t>(x.dims[3]);
    call.behind = size * static_cast<size_t>(channels_ - first_ - x.dims[3]);
    const size_t copied = call.into == call.y ? call.placed : call.before + call.placed + call.behind;
    const PixelTasks tasks(call.pixels, copied);
    call.pixels_per_task = tasks.pixels_per_task;
    RunTasks(api_, context, RunTask, tasks.count, &call);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, kX);
    if (dims.size() != 4) return;
    dims[3] = {ReadInt(api, context, "channels", -1), ""};
    SetOutput(api, context, 0, InputType(api, context, kX, TYPE), dims);
  }

 private:
  const OrtApi& api_;
  const int64_t channels_, first_;
  const bool has_into_;
};

template <int32_t TYPE>
const OrtCustomOp* Make() {
  static const OrtCustomOp op = WithInPlace<kInto>(CustomOp<Place<TYPE>>::Make());
  return &op;
}

}  // namespace

const OrtCustomOp* PlaceOp() { return Make<kFloat>(); }
const OrtCustomOp* PlaceHalfOp() { return Make<kFloat16>(); }

}  // namespace ort
}  // namespace binarize
