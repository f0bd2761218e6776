// The operator GatherChannels: a map whose channels are those of two others in any order, as channel shuffles make them.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/plan.h"
#include "ort/custom_op.h"
#include "ort/ports.h"
#include "ort/shape_inference.h"

namespace binarize {
namespace ort {
namespace {

enum Input : size_t { kA, kB, kChannels, kInputTotal };

constexpr size_t kMostWays = 8;

// Channels of y that are runs of its sources in turns: y[first + step * ways + way] = source[way][step].
struct Piece {
  struct Source {
    bool of_b;
    size_t channel;
  };
  size_t first = 0, ways = 0, steps = 0;
  Source sources[kMostWays] = {};
};

class Pieces {
 public:
  // `channels` are those of `a`, and behind its `of_a` those of b.
  Pieces(const int64_t* channels, size_t count, int64_t of_a) : channels_(channels), count_(count), of_a_(of_a) {
    for (size_t at = 0; at < count; at += pieces_.back().ways * pieces_.back().steps) pieces_.push_back(Longest(at));
  }
  std::vector<Piece> Take() { return std::move(pieces_); }

 private:
  Piece Longest(size_t at) const {
    Piece piece;
    for (size_t ways = 1; ways <= std::min(kMostWays, count_ - at); ++ways) {
      const size_t steps = Steps(at, ways);
      if (ways * steps > piece.ways * piece.steps) piece.ways = ways, piece.steps = steps;
    }
    piece.first = at;
    for (size_t way = 0; way < piece.ways; ++way) {
      const int64_t channel = channels_[at + way];
      const bool of_b = channel >= of_a_;
      piece.sources[way] = {of_b, static_cast<size_t>(of_b ? channel - of_a_ : channel)};
    }
    return piece;
  }

  // For how many steps the channels from `at` on are so many runs in turns, none of which goes on from a to b.
  size_t Steps(size_t at, size_t ways) const {
    size_t same = ways;
    while (at + same < count_) {
      const int64_t channel = channels_[at + same], before = channels_[at + same - ways];
      if (channel != before + 1 || channel == of_a_) break;
      ++same;
    }
    return same / ways;
  }

  const int64_t* channels_;
  const size_t count_;
  const int64_t of_a_;
  std::vector<Piece> pieces_;
};

template <typename T>
void Zip(const T* __restrict a, const T* __restrict b, T* __restrict y, size_t steps) {
  for (size_t i = 0; i < steps; ++i) y[2 * i] = a[i], y[2 * i + 1] = b[i];
}

// T is as wide as the maps' elements, which are moved as they are.
template <typename T>
struct Call {
  const std::vector<Piece>& pieces;
  const T *a, *b;  // b is null when neutral: then no piece is of it
  T* y;
  size_t a_channels, b_channels, y_channels;
  size_t pixels, pixels_per_task;

  void Gather(const Piece& piece, size_t pixel) const {
    const T* runs[kMostWays];
    for (size_t way = 0; way < piece.ways; ++way) {
      const Piece::Source& source = piece.sources[way];
      runs[way] = (source.of_b ? b + pixel * b_channels : a + pixel * a_channels) + source.channel;
    }
    T* to = y + pixel * y_channels + piece.first;
    if (piece.ways == 1) {
      std::memcpy(to, runs[0], piece.steps * sizeof(T));
    } else if (piece.ways == 2) {
      Zip(runs[0], runs[1], to, piece.steps);
    } else {
      for (size_t step = 0; step < piece.steps; ++step) {
        for (size_t way = 0; way < piece.ways; ++way) *to++ = runs[way][step];
      }
    }
  }

  static void RunTask(void* user, size_t task) {
    const Call& call = *static_cast<const Call*>(user);
    const size_t first = task * call.pixels_per_task, last = std::min(first + call.pixels_per_task, call.pixels);
    for (size_t pixel = first; pixel < last; ++pixel) {
      for (const Piece& piece : call.pieces) call.Gather(piece, pixel);
    }
  }
};

// TYPE is the element type of all three maps.
template <int32_t TYPE>
class GatherChannels {
 public:
  static constexpr char kName[] = "GatherChannels";
  static constexpr size_t kInputCount = kInputTotal, kOutputCount = 1;
  static constexpr Port kInputs[kInputTotal] = {{TYPE, kRequired}, {TYPE, kRequired}, {kInt64, kRequired}};
  static constexpr Port kOutputs[1] = {{TYPE, kRequired}};

  GatherChannels(const OrtApi& api, const OrtKernelInfo* info)
      : api_(api),
        of_a_(IntAttribute(api, info, "channels_a", nullptr)),
        has_b_(!IsNeutral(api, info, kB, 0.0f)) {
    RequireRange("attribute channels_a", of_a_, 1, kMaxExtent);
    const Tensor channels = RequiredConstant(api, info, kChannels, "channels", kInt64);
    Require(channels.dims.size() == 1 && channels.dims[0] >= 1 && channels.dims[0] <= kMaxExtent, [&] {
      return "input channels must have the shape [C], C in [1, " + std::to_string(kMaxExtent) + "], has " +
             ShapeText(channels.dims);
    });
    const int64_t* begin = static_cast<const int64_t*>(channels.data);
    count_ = channels.dims[0];
    const auto ends = std::minmax_element(begin, begin + count_);
    for (int64_t channel : {*ends.first, *ends.second}) {
      RequireRange("a value of input channels", channel, 0, has_b_ ? of_a_ + kMaxExtent - 1 : of_a_ - 1);
    }
    least_b_ = std::max<int64_t>(0, *ends.second + 1 - of_a_);
    pieces_ = Pieces(begin, static_cast<size_t>(count_), of_a_).Take();
  }

  void Compute(OrtKernelContext* context) const {
    using T = std::conditional_t<TYPE == kFloat16, uint16_t, uint32_t>;
    const Tensor a = ReadInput(api_, context, kA, "a");
    Require(a.dims.size() == 4 && a.dims[3] == of_a_, [&] {
      return "input a must have the shape [N,H,W," + std::to_string(of_a_) + "], has " + ShapeText(a.dims);
    });
    std::vector<int64_t> dims = a.dims;
    Call<T> call{pieces_, static_cast<const T*>(a.data), nullptr, nullptr, 0, 0, 0, 0, 0};
    if (has_b_) {
      const Tensor b = ReadInput(api_, context, kB, "b");
      Require(b.dims.size() == 4 && std::equal(dims.begin(), dims.end() - 1, b.dims.begin()) && b.dims[3] >= least_b_, [&] {
        return "input b must be like a, " + ShapeText(dims) + ", with at least " + std::to_string(least_b_) +
               " channels, has the shape " + ShapeText(b.dims);
      });
      call.b = static_cast<const T*>(b.data);
      call.b_channels = static_cast<size_t>(b.dims[3]);
    }
    dims[3] = count_;
    call.y = static_cast<T*>(MakeOutput(api_, context, 0, dims));
    call.a_channels = static_cast<size_t>(of_a_), call.y_channels = static_cast<size_t>(count_);
    call.pixels = static_cast<size_t>(CheckedProduct(CheckedProduct(dims[0], dims[1], "pixels"), dims[2], "pixels"));
    const PixelTasks tasks(call.pixels, call.y_channels * sizeof(T));
    call.pixels_per_task = tasks.pixels_per_task;
    RunTasks(api_, context, Call<T>::RunTask, tasks.count, &call);
  }

  static void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
    std::vector<Dim> dims = InputDims(api, context, kA);
    const std::vector<Dim> channels = InputDims(api, context, kChannels);
    if (dims.size() != 4 || channels.size() != 1) return;
    dims[3] = channels[0];
    SetOutput(api, context, 0, InputType(api, context, kA, TYPE), dims);
  }

 private:
  const OrtApi& api_;
  const int64_t of_a_;
  const bool has_b_;
  int64_t count_ = 0, least_b_ = 0;
  std::vector<Piece> pieces_;
};

template <int32_t TYPE>
const OrtCustomOp* Make() {
  static const OrtCustomOp op = CustomOp<GatherChannels<TYPE>>::Make();
  return &op;
}

}  // namespace

const OrtCustomOp* GatherChannelsOp() { return Make<kFloat>(); }
const OrtCustomOp* GatherChannelsHalfOp() { return Make<kFloat16>(); }

}  // namespace ort
}  // namespace binarize
