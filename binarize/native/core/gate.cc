#include "core/gate.h"

#include "core/half.h"

namespace binarize {
namespace {

constexpr float kFarthest = 87.0f;  // e^-87 and e^87 are normal numbers

// In place, to [-kFarthest, kFarthest]; NaN stays. A loop of its own: with the series in it, compilers make branches.
void Clamp(float* t, size_t count) noexcept {
  for (size_t i = 0; i < count; ++i) {
    const float low = t[i] < -kFarthest ? -kFarthest : t[i];
    t[i] = low > kFarthest ? kFarthest : low;
  }
}

// e^x for x in [-kFarthest, kFarthest]: 2^n * e^r with |r| <= ln(2) / 2, of which eight terms of the series are within
// 2^-27. NaN gives NaN.
float Exp(float x) noexcept {
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: a sum with it is whole, and ends in the bits of the integer
  constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;  // n times the first is exact
  const float shifted = x * 1.44269504f + kToInteger;
  const float n = shifted - kToInteger;
  const float r = (x - n * kLog2High) - n * kLog2Low;
  float series = 1.0f / 5040.0f;
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return series * FloatOf((BitsOf(shifted) - BitsOf(kToInteger) + 127u) << 23);
}

// Of a value that is clamped.
float SigmoidOf(float t) noexcept { return 1.0f / (1.0f + Exp(-t)); }

}  // namespace

void JoinRows(const float* sums, size_t rows, size_t channels, float share, float* mean) noexcept {
  for (size_t c = 0; c < channels; ++c) mean[c] = 0.0f;
  for (size_t row = 0; row < rows; ++row, sums += channels) {
    for (size_t c = 0; c < channels; ++c) mean[c] += sums[c];
  }
  for (size_t c = 0; c < channels; ++c) mean[c] *= share;
}

void JoinPartialSums(const float* sums, const float* bias, size_t count, float* t) noexcept {
  const float *second = sums + count, *third = second + count, *fourth = third + count;
  for (size_t o = 0; o < count; ++o) t[o] = ((sums[o] + second[o]) + (third[o] + fourth[o])) + bias[o];
}

void Relu(float* t, size_t count) noexcept {
  for (size_t i = 0; i < count; ++i) t[i] = t[i] < 0.0f ? 0.0f : t[i];
}

void Silu(float* t, size_t count) noexcept {
  constexpr size_t kPiece = 64;
  float factors[kPiece];
  for (size_t first = 0; first < count; first += kPiece) {
    const size_t piece = count - first < kPiece ? count - first : kPiece;
    for (size_t i = 0; i < piece; ++i) factors[i] = t[first + i];
    Sigmoid(factors, piece);
    for (size_t i = 0; i < piece; ++i) t[first + i] = t[first + i] * factors[i];
  }
}

void Sigmoid(float* t, size_t count) noexcept {
  Clamp(t, count);
  for (size_t i = 0; i < count; ++i) t[i] = SigmoidOf(t[i]);
}

void HardSigmoid(float* t, size_t count) noexcept {
  for (size_t i = 0; i < count; ++i) {
    const float line = t[i] * (1.0f / 6.0f) + 0.5f;
    const float low = line < 0.0f ? 0.0f : line;
    t[i] = low > 1.0f ? 1.0f : low;
  }
}

}  // namespace binarize
