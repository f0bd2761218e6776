// The parts of the operator Gate that need no instruction set of their own (docs/ops.md, "Gate"): plain operations, none
// fused, so that every build gives the same bits.
#pragma once

#include <cstddef>

namespace binarize {

// mean[c] = (sums[0][c] + sums[1][c] + ..) * share; sums is [rows][channels].
void JoinRows(const float* sums, size_t rows, size_t channels, float share, float* mean) noexcept;

// t[o] = ((sums[0][o] + sums[1][o]) + (sums[2][o] + sums[3][o])) + bias[o]; sums is [4][count].
constexpr size_t kPartialSums = 4;
void JoinPartialSums(const float* sums, const float* bias, size_t count, float* t) noexcept;

// In place, `count` values.
void Relu(float* t, size_t count) noexcept;
void Silu(float* t, size_t count) noexcept;
void Sigmoid(float* t, size_t count) noexcept;
void HardSigmoid(float* t, size_t count) noexcept;

}  // namespace binarize
