// Random convolutions through the core on every instruction set, against a naive loop over the neutral weights;
// then hostile parameters, which must be refused by InvalidModel and nothing else.
//
// Usage: core_test [cases] [seed]. A failure prints the seed that replays it. Buffers are exactly as large as
// promised, so that a build with BINARIZE_SANITIZE finds any access beyond them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/bits.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "core/half.h"
#include "core/int8_conv.h"
#include "core/keep.h"
#include "core/plan.h"
#include "core/run.h"

namespace {

using namespace binarize;

struct Random {
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t Between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
  bool Coin() { return Between(0, 1) != 0; }
  template <size_t N>
  int64_t OneOf(const int64_t (&values)[N]) {
    return values[Between(0, N - 1)];
  }
  float Value() { return std::normal_distribution<float>()(engine); }
  std::vector<float> Values(int64_t n) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = Value();
    return v;
  }
  std::vector<uint64_t> Words(int64_t n) {
    std::vector<uint64_t> v(static_cast<size_t>(n));
    for (uint64_t& x : v) x = engine();
    return v;
  }
  // Sometimes all alike: then every input matches or differs, and counts reach their ends.
  std::vector<uint64_t> PerhapsAlike(int64_t n) {
    if (Between(0, 3) != 0) return Words(n);
    return std::vector<uint64_t>(static_cast<size_t>(n), Coin() ? ~uint64_t{0} : uint64_t{0});
  }
  std::mt19937_64 engine;
};

struct Case {
  ConvSpec spec;
  ConvParameters parameters;
  MapShape map;
  std::vector<uint64_t> bits, weight;
  Element element;
  std::vector<float> link, residual;  // float16 values when that is the element
  std::vector<float> gate, factor;    // perhaps empty
  bool one_factor;                    // the same for all images
  int64_t out_h, out_w;
  bool want_y, want_bits;
};

struct Result {
  std::vector<float> y;
  std::vector<uint64_t> bits;
};

float At(const std::vector<float>& values, int64_t o) {
  return values[values.size() == 1 ? 0 : static_cast<size_t>(o)];
}

// The threshold of channel `o` in a plane of the next bits.
float Threshold(const ConvParameters& p, int64_t channels, int64_t plane, int64_t o) {
  return p.next_planes == 1 ? At(p.next_threshold, o) : p.next_threshold[static_cast<size_t>(plane * channels + o)];
}

// Words of a pixel's next bits.
int64_t NextWords(const ConvParameters& p, int64_t channels) { return p.next_planes * WordsFor(channels); }

// Sets the bits of a value in all planes of its pixel.
void SetNext(const ConvParameters& p, int64_t channels, int64_t pixel, int64_t o, float value,
             std::vector<uint64_t>& bits) {
  for (int64_t plane = 0; plane < p.next_planes; ++plane) {
    const int64_t word = (pixel * p.next_planes + plane) * WordsFor(channels) + o / 64;
    bits[static_cast<size_t>(word)] |= uint64_t{value > Threshold(p, channels, plane, o)} << (o % 64);
  }
}

// Thresholds of one to three planes.
void MakeThresholds(Random& random, int64_t channels, ConvParameters& p) {
  p.next_planes = random.Between(1, 3);
  p.next_threshold = random.Values(p.next_planes > 1 ? p.next_planes * channels : random.Coin() ? 1 : channels);
}

bool Bit(const std::vector<uint64_t>& words, int64_t row, int64_t words_per_row, int64_t channel) {
  return (words[static_cast<size_t>(row * words_per_row + channel / 64)] >> (channel % 64)) & 1;
}

float Stored(Element element, float x) {
  if (element == Element::kFloat32) return x;
  Half half;
  Narrow(x, &half);
  return Widen(half);
}

std::vector<float> Stored(Element element, std::vector<float> values) {
  for (float& x : values) x = Stored(element, x);
  return values;
}

// The stream as the kernels read it.
std::vector<char> Bytes(Element element, const std::vector<float>& values) {
  if (element == Element::kFloat32) {
    const char* first = reinterpret_cast<const char*>(values.data());
    return std::vector<char>(first, first + values.size() * sizeof(float));
  }
  std::vector<char> bytes(values.size() * sizeof(Half));
  for (size_t i = 0; i < values.size(); ++i) {
    Half half;
    Narrow(values[i], &half);
    std::memcpy(&bytes[i * sizeof(Half)], &half, sizeof half);
  }
  return bytes;
}

std::vector<float> Floats(Element element, const char* bytes, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    Half half;
    if (element == Element::kFloat32) {
      std::memcpy(&values[i], bytes + i * sizeof(float), sizeof(float));
    } else {
      std::memcpy(&half, bytes + i * sizeof(Half), sizeof half);
      values[i] = Widen(half);
    }
  }
  return values;
}

Case MakeCase(Random& random) {
  constexpr int64_t kCounts[] = {1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 112, 120, 128, 130, 200};
  constexpr int64_t kManyInputs[] = {224, 256, 448, 1000};
  Case c{};
  ConvSpec& s = c.spec;
  const int64_t form = random.Between(0, 4);
  s.group = form == 0 ? random.Between(2, 5) : 1;
  s.channels_in = s.group * random.OneOf(kCounts);
  s.channels_out = s.group * random.OneOf(kCounts);
  if (form == 2 && random.Coin()) {
    s.channels_in = random.OneOf(kManyInputs);
    s.channels_out = s.channels_in < 300 && random.Coin() ? 120 : random.Between(1, 40);  // wide tiles, full counters
  }
  if (form == 1) {
    s.group = s.channels_in;
    s.channels_out = s.channels_in * (random.Coin() ? 1 : random.Between(2, 3));
  }
  s.kernel_h = random.Between(1, 5), s.kernel_w = random.Between(1, 5);
  if (form == 3 && random.Between(0, 20) == 0) {  // more mismatches than an int16 holds
    s.channels_in = 1320, s.channels_out = 34;
    s.kernel_h = s.kernel_w = 5;
  }
  s.stride_h = random.Between(1, 3), s.stride_w = random.Between(1, 3);
  s.dilation_h = random.Between(1, 3), s.dilation_w = random.Between(1, 3);
  s.pad_top = random.Between(0, 3), s.pad_left = random.Between(0, 3);
  s.pad_bottom = random.Between(0, 3), s.pad_right = random.Between(0, 3);
  const int64_t least_h = std::max<int64_t>(1, s.dilation_h * (s.kernel_h - 1) + 1 - s.pad_top - s.pad_bottom);
  const int64_t least_w = std::max<int64_t>(1, s.dilation_w * (s.kernel_w - 1) + 1 - s.pad_left - s.pad_right);
  c.map = {random.Between(1, 2), least_h + random.Between(0, 8), least_w + random.Between(0, 17), 0};
  c.out_h = OutputExtent(c.map.h, s.kernel_h, s.stride_h, s.pad_top, s.pad_bottom, s.dilation_h);
  c.out_w = OutputExtent(c.map.w, s.kernel_w, s.stride_w, s.pad_left, s.pad_right, s.dilation_w);

  if (random.Coin()) s.planes = random.Between(1, 3), s.bases = random.Between(1, 3), s.ternary = random.Coin();
  if (random.Coin()) s.first_plane = random.Between(0, 2);
  c.map.planes = s.first_plane + s.bit_planes() + (random.Coin() ? 0 : random.Between(0, 2));
  const auto parameter = [&] { return random.Values(random.Coin() ? 1 : s.channels_out); };
  const auto perhaps = [&](float neutral) { return random.Coin() ? parameter() : std::vector<float>{neutral}; };
  ConvParameters& p = c.parameters;
  p.scale = parameter(), p.bias = parameter(), p.gamma = parameter();
  MakeThresholds(random, s.channels_out, p);
  p.slope = perhaps(1.0f), p.shift = perhaps(0.0f);
  if (random.Coin()) {  // at most 1, for which the kernels have a shorter way
    for (float& slope : p.slope) slope = std::min(slope, 1.0f);
  }
  p.has_link = random.Coin();
  if (s.terms() > 1 && random.Coin()) p.scale = random.Values(s.terms() * s.channels_out);

  const int64_t words = WordsFor(s.channels_in), pixels = c.map.n * c.map.h * c.map.w;
  c.bits = random.PerhapsAlike(pixels * c.map.planes * words);  // stray bits past the last channel included
  c.weight = random.PerhapsAlike(s.bases * s.channels_out / s.group * s.kernel_h * s.kernel_w * words);
  if (random.Between(0, 3) == 0) c.gate = random.Values(c.map.n * s.channels_out);
  c.one_factor = random.Coin();
  if (random.Between(0, 3) == 0) c.factor = random.Values((c.one_factor ? 1 : c.map.n) * c.out_h * c.out_w);
  p.factors = {!c.gate.empty(), !c.factor.empty()};
  c.element = p.element = random.Coin() ? Element::kFloat32 : Element::kFloat16;
  if (p.has_link) c.link = Stored(c.element, random.Values(pixels * s.channels_in));
  if (random.Coin()) c.residual = Stored(c.element, random.Values(c.map.n * c.out_h * c.out_w * s.channels_out));
  c.want_y = random.Coin();
  c.want_bits = !c.want_y || random.Coin();
  return c;
}

// Of one plane of bits and one base of the weight.
int64_t NaiveAccumulator(const Case& c, int64_t n, int64_t i, int64_t k, int64_t o, int64_t plane, int64_t base) {
  const ConvSpec& s = c.spec;
  const int64_t words = WordsFor(s.channels_in), in_per_group = s.channels_in / s.group;
  const int64_t rows = s.channels_out / s.group;
  int64_t sum = 0;
  for (int64_t r = 0; r < s.kernel_h; ++r) {
    for (int64_t t = 0; t < s.kernel_w; ++t) {
      const int64_t row = i * s.stride_h - s.pad_top + r * s.dilation_h;
      const int64_t column = k * s.stride_w - s.pad_left + t * s.dilation_w;
      if (row < 0 || row >= c.map.h || column < 0 || column >= c.map.w) continue;
      for (int64_t channel = o / rows * in_per_group; channel < (o / rows + 1) * in_per_group; ++channel) {
        const int64_t pixel = (n * c.map.h + row) * c.map.w + column;
        const bool a = Bit(c.bits, pixel * c.map.planes + s.first_plane + plane, words, channel);
        const bool w = Bit(c.weight, ((base * rows + o % rows) * s.kernel_h + r) * s.kernel_w + t, words, channel);
        sum += a == w ? 1 : -1;
      }
    }
  }
  return sum;
}

float NaiveLink(const Case& c, int64_t n, int64_t i, int64_t k, int64_t o) {
  const ConvSpec& s = c.spec;
  const int64_t in = s.channels_in / s.group, out = s.channels_out / s.group, j = o % out;
  const int64_t top = i * s.stride_h + LinkOffset(s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
  const int64_t left = k * s.stride_w + LinkOffset(s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
  float sum = 0.0f;
  int64_t count = 0;
  for (int64_t row = top; row < top + s.stride_h; ++row) {
    for (int64_t column = left; column < left + s.stride_w; ++column) {
      if (row < 0 || row >= c.map.h || column < 0 || column >= c.map.w) continue;
      ++count;
      for (int64_t source = out >= in ? j % in : j; source < in; source += out >= in ? in : out) {
        const int64_t pixel = (n * c.map.h + row) * c.map.w + column;
        sum += c.link[static_cast<size_t>(pixel * s.channels_in + o / out * in + source)];
      }
    }
  }
  return count == 0 ? 0.0f : sum * (1.0f / static_cast<float>(count));
}

// The sum of all terms, from the bias on.
float NaiveSum(const Case& c, int64_t n, int64_t i, int64_t k, int64_t o) {
  const ConvSpec& s = c.spec;
  const ConvParameters& p = c.parameters;
  const int64_t digits = s.ternary ? 2 : 1;
  const bool by_term = static_cast<int64_t>(p.scale.size()) > s.channels_out;
  float t = At(p.bias, o);
  for (int64_t term = 0; term < s.terms(); ++term) {
    int64_t sum = 0;
    for (int64_t digit = 0; digit < digits; ++digit) {
      sum += NaiveAccumulator(c, n, i, k, o, term % s.planes * digits + digit, term / s.planes);
    }
    float scale = At(p.scale, by_term ? term * s.channels_out + o : o);
    if (!c.gate.empty()) scale = scale * c.gate[static_cast<size_t>(n * s.channels_out + o)];
    float a = static_cast<float>(sum / digits);
    if (!c.factor.empty()) a = a * c.factor[static_cast<size_t>(((c.one_factor ? 0 : n) * c.out_h + i) * c.out_w + k)];
    t = std::fma(a, scale, t);
  }
  return t;
}

Result Naive(const Case& c) {
  const ConvSpec& s = c.spec;
  const ConvParameters& p = c.parameters;
  const int64_t words = NextWords(p, s.channels_out), pixels = c.map.n * c.out_h * c.out_w;
  Result result{std::vector<float>(static_cast<size_t>(pixels * s.channels_out)),
                std::vector<uint64_t>(static_cast<size_t>(pixels * words))};
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t n = pixel / (c.out_h * c.out_w), i = pixel / c.out_w % c.out_h, k = pixel % c.out_w;
    for (int64_t o = 0; o < s.channels_out; ++o) {
      const size_t at = static_cast<size_t>(pixel * s.channels_out + o);
      float t = NaiveSum(c, n, i, k, o);
      if (p.has_link) t = std::fma(At(p.gamma, o), NaiveLink(c, n, i, k, o), t);
      if (!c.residual.empty()) t = t + c.residual[at];
      t = t > 0.0f ? t : At(p.slope, o) * t;
      t = Stored(c.element, t + At(p.shift, o));
      result.y[at] = t;
      SetNext(p, s.channels_out, pixel, o, t, result.bits);
    }
  }
  return result;
}

// A heap block of exactly this many bytes, filled with a pattern no result should keep.
std::unique_ptr<char[]> Dirty(size_t bytes) {
  std::unique_ptr<char[]> block(new char[bytes]);
  std::memset(block.get(), 0xA5, bytes);
  return block;
}

// One call of a geometry with memory of its own.
class Call {
 public:
  Call(const Case& c, const ConvGeometry& geometry) : case_(c) {
    const size_t pixels = static_cast<size_t>(c.map.n * c.out_h * c.out_w);
    y_size_ = pixels * static_cast<size_t>(c.spec.channels_out);
    bits_size_ = pixels * static_cast<size_t>(NextWords(c.parameters, c.spec.channels_out));
    y_ = Dirty(y_size_ * (c.element == Element::kFloat16 ? sizeof(Half) : sizeof(float)));
    bits_ = Dirty(bits_size_ * sizeof(uint64_t));
    scratch_ = Dirty(geometry.scratch_bytes);
    link_ = Bytes(c.element, c.link);
    residual_ = Bytes(c.element, c.residual);
    ConvTensors tensors{};
    tensors.bits = c.bits.data();
    tensors.link = c.link.empty() ? nullptr : link_.data();
    tensors.residual = c.residual.empty() ? nullptr : residual_.data();
    tensors.factors = {c.gate.data(), c.factor.data(), c.one_factor};
    tensors.y = c.want_y ? y_.get() : nullptr;
    tensors.next_bits = c.want_bits ? reinterpret_cast<uint64_t*>(bits_.get()) : nullptr;
    run_ = std::make_unique<const ConvRun>(geometry, tensors, scratch_.get());
  }

  const ConvRun& run() const { return *run_; }

  Result Read() const {
    Result result;
    if (case_.want_y) result.y = Floats(case_.element, y_.get(), y_size_);
    const uint64_t* words = reinterpret_cast<const uint64_t*>(bits_.get());
    if (case_.want_bits) result.bits.assign(words, words + bits_size_);
    return result;
  }

 private:
  const Case& case_;
  std::unique_ptr<const ConvRun> run_;
  size_t y_size_, bits_size_;
  std::unique_ptr<char[]> y_, bits_, scratch_;
  std::vector<char> link_, residual_;
};

Result RunCore(const Case& c, const Kernels& kernels, Random& random) {
  const ConvPlan plan(c.spec, c.parameters, c.weight.data(), kernels);
  const ConvGeometry geometry(plan, c.map);
  const Call call(c, geometry);
  std::vector<size_t> order(geometry.task_count);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random.engine);  // any order gives the same result
  for (size_t task : order) call.run().RunTask(task);
  return call.Read();
}

std::vector<const Isa*> AvailableIsas() {
  std::vector<const Isa*> isas;
  for (const char* name : {"scalar", "avx2", "avxvnni", "avx512bw", "avx512", "amx", "neon"}) {
    try {
      isas.push_back(&SelectIsa(name));
    } catch (const std::runtime_error&) {  // not in this build or not on this machine
    }
  }
  return isas;
}

std::string Describe(const Case& c) {
  const ConvSpec& s = c.spec;
  char text[256];
  std::snprintf(text, sizeof text,
                "C %d O %d group %d kernel %dx%d stride %dx%d dilation %dx%d pads %d,%d,%d,%d map %dx%dx%d link %d "
                "residual %d planes %d bases %d ternary %d gate %d factor %d",
                static_cast<int>(s.channels_in), static_cast<int>(s.channels_out), static_cast<int>(s.group),
                static_cast<int>(s.kernel_h), static_cast<int>(s.kernel_w), static_cast<int>(s.stride_h),
                static_cast<int>(s.stride_w), static_cast<int>(s.dilation_h), static_cast<int>(s.dilation_w),
                static_cast<int>(s.pad_top), static_cast<int>(s.pad_left), static_cast<int>(s.pad_bottom),
                static_cast<int>(s.pad_right), static_cast<int>(c.map.n), static_cast<int>(c.map.h),
                static_cast<int>(c.map.w), c.parameters.has_link, !c.residual.empty(), static_cast<int>(s.planes),
                static_cast<int>(s.bases), s.ternary, !c.gate.empty(), !c.factor.empty());
  return text;
}

// Equal as values: the kernels may keep the sign of a zero that a neutral shift would drop.
// To the sign of a zero; any NaN is as good as another.
bool IsSame(float a, float b) { return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof a) == 0; }

bool Agree(const Case& c, const Result& got, const Result& expected) {
  if (c.want_y && !std::equal(got.y.begin(), got.y.end(), expected.y.begin(), IsSame)) return false;
  return !c.want_bits || got.bits == expected.bits;
}

int CheckCases(int64_t cases, uint64_t seed) {
  for (int64_t i = 0; i < cases; ++i) {
    const uint64_t case_seed = seed + static_cast<uint64_t>(i);
    Random random(case_seed);
    const Case c = MakeCase(random);
    const Result expected = Naive(c);
    for (const Isa* isa : AvailableIsas()) {
      if (Agree(c, RunCore(c, *isa->kernels, random), expected)) continue;
      std::printf("FAILED on %s with seed %llu: %s\n", isa->name, static_cast<unsigned long long>(case_seed),
                  Describe(c).c_str());
      return 1;
    }
  }
  return 0;
}

// Two calls of one plan at a time, as of two sessions' threads, each with its tasks spread over two threads. Meant for
// ThreadSanitizer.
int CheckThreads(int64_t cases, uint64_t seed) {
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    const Case c = MakeCase(random);
    const Result expected = Naive(c);
    for (const Isa* isa : AvailableIsas()) {
      const ConvPlan plan(c.spec, c.parameters, c.weight.data(), *isa->kernels);
      const ConvGeometry geometry(plan, c.map);
      const Call calls[2] = {{c, geometry}, {c, geometry}};
      std::atomic<size_t> next[2] = {{0}, {0}};
      std::vector<std::thread> threads;
      for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&calls, &next, &geometry, t] {
          const ConvRun& run = calls[t % 2].run();
          for (size_t task; (task = next[t % 2]++) < geometry.task_count;) run.RunTask(task);
        });
      }
      for (std::thread& thread : threads) thread.join();
      if (Agree(c, calls[0].Read(), expected) && Agree(c, calls[1].Read(), expected)) continue;
      std::printf("FAILED: threads on %s with seed %llu: %s\n", isa->name,
                  static_cast<unsigned long long>(seed + static_cast<uint64_t>(i)), Describe(c).c_str());
      return 1;
    }
  }
  return 0;
}

// Threads that ask for more shapes than are kept: each gets what it asked for, and what is kept is made known once.
int CheckKept(int64_t cases, uint64_t seed) {
  constexpr int64_t kShapes = 6;
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    const Case c = MakeCase(random);
    const ConvPlan plan(c.spec, c.parameters, c.weight.data(), *SelectIsa("scalar").kernels);
    const KeptValues<ConvGeometry> kept;
    std::atomic<bool> right{true};
    const auto ask = [&](int64_t shape, const ConvGeometry** found) {
      const MapShape map{c.map.n, c.map.h + shape, c.map.w, c.map.planes};
      std::unique_ptr<const ConvGeometry> own;
      const ConvGeometry& geometry = kept.FindOrMake([&](const ConvGeometry& g) { return g.map == map; },
                                                     [&] { return std::make_unique<const ConvGeometry>(plan, map); }, own);
      if (!(geometry.map == map)) right = false;
      if (found != nullptr) *found = own.get() == &geometry ? nullptr : &geometry;
    };
    std::vector<std::thread> threads;
    for (int64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&ask, t] {
        for (int64_t shape = 0; shape < kShapes; ++shape) ask((shape + t) % kShapes, nullptr);
      });
    }
    for (std::thread& thread : threads) thread.join();
    int64_t places = 0;
    for (int64_t shape = 0; shape < kShapes; ++shape) {
      const ConvGeometry *first = nullptr, *second = nullptr;
      ask(shape, &first);
      ask(shape, &second);
      places += first != nullptr ? 1 : 0;
      if (first != second) right = false;
    }
    if (right && places == 4) continue;
    std::printf("FAILED: kept geometries with seed %llu\n", static_cast<unsigned long long>(seed + static_cast<uint64_t>(i)));
    return 1;
  }
  return 0;
}

int CheckPack(int64_t cases, uint64_t seed) {
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    const int64_t pixels = random.Between(1, 9), channels = random.Between(1, 200), words = WordsFor(channels);
    const bool per_channel = random.Coin();
    const int64_t planes = per_channel ? random.Between(1, 3) : 1;
    const Element element = random.Coin() ? Element::kFloat32 : Element::kFloat16;
    const std::vector<float> x = Stored(element, random.Values(pixels * channels));
    const std::vector<char> stream = Bytes(element, x);
    const std::vector<float> threshold = random.Values(per_channel ? planes * channels : 1);
    std::vector<uint64_t> expected(static_cast<size_t>(pixels * planes * words));
    for (int64_t at = 0; at < pixels * planes * channels; ++at) {
      const int64_t pixel = at / (planes * channels), plane = at / channels % planes, c = at % channels;
      const uint64_t bit = x[static_cast<size_t>(pixel * channels + c)] > At(threshold, plane * channels + c);
      expected[static_cast<size_t>((pixel * planes + plane) * words + c / 64)] |= bit << (c % 64);
    }
    for (const Isa* isa : AvailableIsas()) {
      std::vector<uint64_t> got(expected.size(), 0xA5A5A5A5A5A5A5A5u);
      isa->kernels->pack({element, stream.data(), threshold.data(), per_channel ? size_t{1} : size_t{0}, got.data(),
                          static_cast<size_t>(pixels), static_cast<size_t>(planes), static_cast<size_t>(channels),
                          static_cast<size_t>(words)});
      if (got == expected) continue;
      std::printf("FAILED: Pack on %s with seed %llu\n", isa->name,
                  static_cast<unsigned long long>(seed + static_cast<uint64_t>(i)));
      return 1;
    }
  }
  return 0;
}

// ---------------------------------------------------------------------------------------------- Int8Conv2d

struct Int8Case {
  Int8Spec spec;
  ConvParameters parameters;
  int64_t images, height, width, sums_h, sums_w, out_h, out_w;
  std::vector<int8_t> weight;
  std::vector<float> x, residual;
};

Int8Case MakeInt8Case(Random& random) {
  constexpr int64_t kCounts[] = {1, 7, 16, 17, 32, 48, 64, 70, 130};
  Int8Case c{};
  Int8Spec& s = c.spec;
  s.channels_in = random.Between(1, 5), s.channels_out = random.OneOf(kCounts);
  s.kernel_h = random.Between(1, 7), s.kernel_w = random.Between(1, 9);
  if (random.Between(0, 3) == 0) s.kernel_h = 1, s.kernel_w = random.Between(9, 20);  // up to 25 steps in a row of taps
  s.pools_values = random.Coin();
  s.stride_h = random.Between(1, 4), s.stride_w = random.Between(1, 4);
  s.pad_top = random.Between(0, 3), s.pad_left = random.Between(0, 3);
  s.pad_bottom = random.Between(0, 3), s.pad_right = random.Between(0, 3);
  if (random.Coin()) {
    s.pool_h = random.Between(1, 4), s.pool_w = random.Between(1, 4);
    s.pool_stride_h = random.Between(1, 5), s.pool_stride_w = random.Between(1, 5);
    s.pool_top = random.Between(0, s.pool_h - 1), s.pool_bottom = random.Between(0, s.pool_h - 1);
    s.pool_left = random.Between(0, s.pool_w - 1), s.pool_right = random.Between(0, s.pool_w - 1);
  }
  s.factor = std::exp(random.Value() + 4.0f);
  s.zero_point = random.Between(0, 255);
  const auto least = [](int64_t sums, int64_t kernel, int64_t stride, int64_t pads) {
    return std::max<int64_t>(1, (sums - 1) * stride + kernel - pads);
  };
  const int64_t sums_h = std::max<int64_t>(1, s.pool_h - s.pool_top - s.pool_bottom) + random.Between(0, 12);
  const int64_t most_w = random.Between(0, 3) == 0 ? 40 : 12;
  const int64_t sums_w = std::max<int64_t>(1, s.pool_w - s.pool_left - s.pool_right) + random.Between(0, most_w);
  c.images = 1;
  c.height = least(sums_h, s.kernel_h, s.stride_h, s.pad_top + s.pad_bottom) + random.Between(0, 3);
  c.width = least(sums_w, s.kernel_w, s.stride_w, s.pad_left + s.pad_right) + random.Between(0, 3);
  c.sums_h = OutputExtent(c.height, s.kernel_h, s.stride_h, s.pad_top, s.pad_bottom, 1);
  c.sums_w = OutputExtent(c.width, s.kernel_w, s.stride_w, s.pad_left, s.pad_right, 1);
  c.out_h = OutputExtent(c.sums_h, s.pool_h, s.pool_stride_h, s.pool_top, s.pool_bottom, 1);
  c.out_w = OutputExtent(c.sums_w, s.pool_w, s.pool_stride_w, s.pool_left, s.pool_right, 1);

  const auto parameter = [&] { return random.Values(random.Coin() ? 1 : s.channels_out); };
  ConvParameters& p = c.parameters;
  p.scale = parameter(), p.bias = parameter();
  MakeThresholds(random, s.channels_out, p);
  p.slope = random.Coin() ? parameter() : std::vector<float>{1.0f};
  if (random.Coin()) {  // values that rise
    for (float& scale : p.scale) scale = std::fabs(scale) + 0.01f;
    for (float& slope : p.slope) slope = std::fabs(slope);
  }
  p.shift = random.Coin() ? parameter() : std::vector<float>{0.0f};
  p.element = random.Coin() ? Element::kFloat32 : Element::kFloat16;
  for (int64_t i = 0; i < s.channels_out * s.channels_in * s.kernel_h * s.kernel_w; ++i) {
    c.weight.push_back(static_cast<int8_t>(random.Between(-128, 127)));
  }
  c.x = random.Values(s.channels_in * c.height * c.width);
  for (float& x : c.x) {
    if (random.Between(0, 19) == 0) x = random.Coin() ? std::nanf("") : 1e30f;
  }
  if (random.Coin()) c.residual = Stored(p.element, random.Values(c.out_h * c.out_w * s.channels_out));
  return c;
}

int64_t NaiveInt8(const Int8Case& c, int64_t i, int64_t k, int64_t o) {
  const Int8Spec& s = c.spec;
  int64_t sum = 0;
  for (int64_t channel = 0; channel < s.channels_in; ++channel) {
    for (int64_t r = 0; r < s.kernel_h; ++r) {
      for (int64_t t = 0; t < s.kernel_w; ++t) {
        const int64_t row = i * s.stride_h - s.pad_top + r, column = k * s.stride_w - s.pad_left + t;
        if (row < 0 || row >= c.height || column < 0 || column >= c.width) continue;
        const float x = c.x[static_cast<size_t>((channel * c.height + row) * c.width + column)] * s.factor;
        const float zero = static_cast<float>(s.zero_point);
        const float q = std::isnan(x) ? -zero : std::nearbyint(std::min(std::max(x, -zero), 255.0f - zero));
        sum += static_cast<int64_t>(q) *
               c.weight[static_cast<size_t>(((o * s.channels_in + channel) * s.kernel_h + r) * s.kernel_w + t)];
      }
    }
  }
  return sum;
}

Result NaiveInt8(const Int8Case& c) {
  const Int8Spec& s = c.spec;
  const ConvParameters& p = c.parameters;
  const int64_t words = NextWords(p, s.channels_out);
  Result result{std::vector<float>(static_cast<size_t>(c.out_h * c.out_w * s.channels_out)),
                std::vector<uint64_t>(static_cast<size_t>(c.out_h * c.out_w * words))};
  for (int64_t pixel = 0; pixel < c.out_h * c.out_w; ++pixel) {
    for (int64_t o = 0; o < s.channels_out; ++o) {
      const size_t at = static_cast<size_t>(pixel * s.channels_out + o);
      const auto value = [&](int64_t sum) {
        float t = std::fma(static_cast<float>(sum), At(p.scale, o), At(p.bias, o));
        if (!c.residual.empty()) t = t + c.residual[at];
        return t > 0.0f ? t : At(p.slope, o) * t;
      };
      int64_t most = INT64_MIN;
      float largest = -INFINITY;
      for (int64_t r = 0; r < s.pool_h; ++r) {
        for (int64_t t = 0; t < s.pool_w; ++t) {
          const int64_t row = pixel / c.out_w * s.pool_stride_h - s.pool_top + r;
          const int64_t column = pixel % c.out_w * s.pool_stride_w - s.pool_left + t;
          if (row < 0 || row >= c.sums_h || column < 0 || column >= c.sums_w) continue;
          const int64_t sum = NaiveInt8(c, row, column, o);
          most = std::max(most, sum);
          largest = std::max(largest, value(sum));
        }
      }
      const float t = Stored(p.element, (s.pools_values ? largest : value(most)) + At(p.shift, o));
      result.y[at] = t;
      SetNext(p, s.channels_out, pixel, o, t, result.bits);
    }
  }
  return result;
}

// Tasks run on two threads, each with its part of the scratch memory.
Result RunInt8(const Int8Case& c, const Kernels& kernels) {
  const Int8Plan plan(c.spec, c.parameters, c.weight.data(), kernels);
  const Int8Run run(plan, c.height, c.width);
  const Element element = c.parameters.element;
  const size_t size = static_cast<size_t>(c.out_h * c.out_w * c.spec.channels_out);
  const size_t words = static_cast<size_t>(c.out_h * c.out_w * NextWords(c.parameters, c.spec.channels_out));
  const auto y = Dirty(size * (element == Element::kFloat16 ? sizeof(Half) : sizeof(float)));
  const auto bits = Dirty(words * sizeof(uint64_t)), scratch = Dirty(run.scratch_bytes());
  const std::vector<char> residual = Bytes(element, c.residual);
  Int8Tensors tensors{};
  tensors.x = c.x.data();
  tensors.residual = c.residual.empty() ? nullptr : residual.data();
  tensors.y = y.get();
  tensors.next_bits = reinterpret_cast<uint64_t*>(bits.get());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t task; (task = next++) < run.task_count();) run.RunTask(tensors, scratch.get(), task);
  };
  std::thread other(work);
  work();
  other.join();
  const uint64_t* first = reinterpret_cast<const uint64_t*>(bits.get());
  return {Floats(element, y.get(), size), std::vector<uint64_t>(first, first + words)};
}

int CheckInt8(int64_t cases, uint64_t seed) {
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    const Int8Case c = MakeInt8Case(random);
    const Result expected = NaiveInt8(c);
    for (const Isa* isa : AvailableIsas()) {
      const Result got = RunInt8(c, *isa->kernels);
      if (got.y == expected.y && got.bits == expected.bits) continue;
      const Int8Spec& s = c.spec;
      std::printf("FAILED: int8 on %s with seed %llu: C %d O %d kernel %dx%d stride %dx%d pool %dx%d image %dx%d\n",
                  isa->name, static_cast<unsigned long long>(seed + static_cast<uint64_t>(i)),
                  static_cast<int>(s.channels_in), static_cast<int>(s.channels_out), static_cast<int>(s.kernel_h),
                  static_cast<int>(s.kernel_w), static_cast<int>(s.stride_h), static_cast<int>(s.stride_w),
                  static_cast<int>(s.pool_h), static_cast<int>(s.pool_w), static_cast<int>(c.height),
                  static_cast<int>(c.width));
      return 1;
    }
  }
  return 0;
}

// As CheckHostile, for the int8 convolution.
int CheckHostileInt8(int64_t cases, uint64_t seed) {
  constexpr int64_t kEvil[] = {-1, 0, 1, 1, 2, 3, 64, int64_t{1} << 20, int64_t{1} << 62, INT64_MIN, INT64_MAX};
  int64_t refused = 0;
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    Int8Spec s;
    s.channels_in = s.channels_out = 1;
    s.factor = random.Coin() ? 1.0f : random.Value();
    for (int64_t* field :
         {&s.channels_in, &s.channels_out, &s.kernel_h, &s.kernel_w, &s.stride_h, &s.stride_w, &s.pad_top, &s.pad_left,
          &s.pad_bottom, &s.pad_right, &s.pool_h, &s.pool_w, &s.pool_stride_h, &s.pool_stride_w, &s.pool_top,
          &s.pool_left, &s.pool_bottom, &s.pool_right, &s.zero_point}) {
      const bool at_least_one = *field == 1;
      *field = random.Between(0, 19) != 0 ? (at_least_one ? random.Between(1, 2) : 0) : random.OneOf(kEvil);
    }
    try {
      // Sizes the adapter reads off the weight tensor, which therefore exists.
      s.channels_in = std::clamp<int64_t>(s.channels_in, -1, 300), s.channels_out = std::clamp<int64_t>(s.channels_out, -1, 300);
      s.kernel_h = std::clamp<int64_t>(s.kernel_h, -1, 300), s.kernel_w = std::clamp<int64_t>(s.kernel_w, -1, 300);
      const int64_t weight = std::max<int64_t>(0, s.channels_in * s.channels_out) * std::max<int64_t>(0, s.kernel_h * s.kernel_w);
      if (weight > 1000000) continue;  // legal, but a test of memory and patience
      const std::vector<float> one{1.0f};
      const std::vector<int8_t> weights(static_cast<size_t>(weight), 1);
      const Int8Plan plan(s, {one, one, one, one, one, one}, weights.data(), *SelectIsa("scalar").kernels);
      const int64_t height = random.Between(0, 4), width = random.Between(0, 4);
      const Int8Run run(plan, height, width);
      const int64_t outputs = run.out_h() * run.out_w() * s.channels_out;
      if (outputs > 100000 || run.scratch_bytes() > 10000000) continue;
      const std::vector<float> x = random.Values(s.channels_in * height * width);
      std::vector<float> y(static_cast<size_t>(outputs));
      const auto scratch = Dirty(run.scratch_bytes());
      for (size_t task = 0; task < run.task_count(); ++task) {
        run.RunTask({x.data(), nullptr, y.data(), nullptr}, scratch.get(), task);
      }
    } catch (const InvalidModel&) {
      ++refused;
    }
  }
  if (refused > 0 && refused < cases) return 0;
  std::printf("FAILED: of %d hostile parameters %d were refused\n", static_cast<int>(cases), static_cast<int>(refused));
  return 1;
}

// Numbers a hostile file may contain. Accepted parameters are small enough to run; all others throw InvalidModel.
int CheckHostile(int64_t cases, uint64_t seed) {
  constexpr int64_t kEvil[] = {-1, 0,  1, 1, 1, 2, 3, 64, int64_t{1} << 20, int64_t{1} << 31, int64_t{1} << 62,
                               INT64_MIN, INT64_MAX};
  int64_t refused = 0;
  for (int64_t i = 0; i < cases; ++i) {
    Random random(seed + static_cast<uint64_t>(i));
    ConvSpec s;
    for (int64_t* field : {&s.channels_in, &s.channels_out, &s.group, &s.kernel_h, &s.kernel_w, &s.stride_h,
                           &s.stride_w, &s.pad_top, &s.pad_left, &s.pad_bottom, &s.pad_right, &s.dilation_h,
                           &s.dilation_w, &s.planes, &s.bases}) {
      *field = random.Coin() ? 1 : random.OneOf(kEvil);
    }
    s.ternary = random.Coin();
    try {
      ValidateSpec(s);
      const int64_t weight = s.bases * s.channels_out / s.group * s.kernel_h * s.kernel_w * WordsFor(s.channels_in);
      if (weight > 100000 || s.channels_out > 100000) continue;  // legal, but a test of memory and patience
      const std::vector<float> one{1.0f};
      const Kernels& kernels = *SelectIsa("scalar").kernels;
      const ConvPlan plan(s, {one, one, one, one, one, one}, random.Words(weight).data(), kernels);
      const int64_t planes = s.first_plane + s.bit_planes() + random.Between(0, 1);
      const auto extent = [&] { return random.Between(0, 3) == 0 ? random.OneOf(kEvil) : random.Between(1, 4); };
      const MapShape map{random.Between(0, 1), extent(), extent(), planes};
      const ConvGeometry geometry(plan, map);
      const int64_t outputs = map.n * geometry.out_h * geometry.out_w * s.channels_out;
      const int64_t words = map.n * map.h * map.w * planes * WordsFor(s.channels_in);
      if (outputs > 100000 || words > 100000 || geometry.scratch_bytes > 10000000) continue;
      const std::vector<uint64_t> bits = random.Words(words);
      const auto scratch = Dirty(geometry.scratch_bytes);
      std::vector<float> y(static_cast<size_t>(outputs));
      const ConvRun run(geometry, {bits.data(), nullptr, nullptr, y.data(), nullptr, {}}, scratch.get());
      for (size_t task = 0; task < geometry.task_count; ++task) run.RunTask(task);
    } catch (const InvalidModel&) {
      ++refused;
    }
  }
  if (refused > 0) return 0;
  std::printf("FAILED: no hostile parameter was refused\n");
  return 1;
}

// Every float16 comes back, and every value between two of them goes to the nearer one, a tie to the even one.
int CheckHalf() {
  const auto narrow = [](float x) {
    Half half;
    Narrow(x, &half);
    return half.bits;
  };
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float here = Widen(Half{static_cast<uint16_t>(bits)});
    const float next = bits == 0x7bff ? 65536.0f : Widen(Half{static_cast<uint16_t>(bits + 1)});
    const float middle = here + (next - here) / 2;
    const uint32_t even = bits + bits % 2;
    const bool right = narrow(here) == bits && narrow(-here) == (bits | 0x8000) && narrow(middle) == even &&
                       narrow(std::nextafter(middle, 0.0f)) == bits && narrow(std::nextafter(middle, next)) == bits + 1;
    if (right) continue;
    std::printf("FAILED: float16 0x%x\n", bits);
    return 1;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto value = [&] {
      const float special[] = {0.0f, -0.0f, infinity, -infinity, 65504.0f, 65520.0f, -65504.0f, -65520.0f, 1e30f, -1e30f, std::nanf("")};
      return i % 5 == 0 ? special[random.Between(0, 10)] : random.Value() * std::ldexp(1.0f, static_cast<int>(random.Between(-30, 17)));
    };
    const float threshold = i % 3 == 0 ? Stored(Element::kFloat16, value()) : value();
    float x = value();
    if (i % 2 == 0) x = std::nextafter(ThresholdBeforeRounding(threshold), random.Coin() ? infinity : -infinity);
    if (i % 4 == 0) x = ThresholdBeforeRounding(threshold);
    if ((Stored(Element::kFloat16, x) > threshold) == (x > ThresholdBeforeRounding(threshold))) continue;
    std::printf("FAILED: float16 of %a above %a\n", x, threshold);
    return 1;
  }
  const bool special = narrow(infinity) == 0x7c00 && std::isinf(Widen(Half{0xfc00})) && std::isnan(Widen(Half{0x7e00})) &&
                       (narrow(std::nanf("")) & 0x7fff) > 0x7c00;
  if (!special) std::printf("FAILED: float16 infinity or NaN\n");
  return special ? 0 : 1;
}

int CheckDispatch() {
  try {
    SelectIsa("no such isa");
  } catch (const std::runtime_error&) {
    return 0;
  }
  std::printf("FAILED: an unknown instruction set was accepted\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 500;
  const uint64_t seed = argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 1;
  std::string names;
  for (const Isa* isa : AvailableIsas()) names += std::string(" ") + isa->name;
  std::printf("%lld cases from seed %llu on%s\n", static_cast<long long>(cases),
              static_cast<unsigned long long>(seed), names.c_str());
  const int failures = CheckCases(cases, seed) + CheckThreads(cases / 10, seed) + CheckKept(cases / 10, seed) +
                       CheckPack(cases, seed) + CheckHostile(10 * cases, seed) + CheckInt8(cases, seed) +
                       CheckHostileInt8(10 * cases, seed) + CheckHalf() + CheckDispatch();
  if (failures == 0) std::printf("all passed\n");
  return failures == 0 ? 0 : 1;
}
