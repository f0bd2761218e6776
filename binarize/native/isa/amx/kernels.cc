// AMX kernels (AMX-TILE and AMX-INT8 beside AVX-512): the sums of an int8 convolution, a thousand products in a cycle. All
// else is AVX-512's, binary convolutions too: see DECISIONS.md, "Kernels".
//
// No std headers: this file has its own target flags (see core/kernels.h).
#include <immintrin.h>

#include "isa/generic/vector.h"

namespace binarize {
namespace {

using generic::kLanes;
using generic::Min;

constexpr size_t kTilePixels = 16;
constexpr size_t kTileSteps = 16;  // of a row of the kernel, at most
constexpr size_t kStepBytes = 4;
constexpr size_t kWeightBytes = kLanes * kStepBytes;  // of a step and block

// What LDTILECFG loads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums, [pixels][16] int32; 4 is taps, [pixels][steps][4] bytes; 5 to 7 are weights, [steps][16][4].
void UseTiles(size_t pixels, size_t steps) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<uint16_t>(i == 4 ? steps * kStepBytes : kWeightBytes);
    config.rows[i] = static_cast<uint8_t>(i < 5 ? pixels : steps);
  }
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12 says of the next instruction that it reads eight bytes
  _tile_loadconfig(&config);
}

// The pixels of a tile and BLOCKS blocks. Rows of the tile of taps overlap in the map.
template <int BLOCKS>
BINARIZE_INLINE void SumsTile(const Int8Const& k, const Int8SumsJob& job, size_t block, size_t column) {
  const size_t block_step = k.kernel_h * k.steps * kWeightBytes, sums_step = k.epilogue.block_count * kLanes;
  const char* weights = static_cast<const char*>(k.weights) + block * block_step;
  const char* map = static_cast<const char*>(job.map) + column * job.pixel_step;
  _tile_zero(0);
  if constexpr (BLOCKS > 1) _tile_zero(1);
  if constexpr (BLOCKS > 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t r = 0; r < k.kernel_h; ++r, map += job.row_step, weights += k.steps * kWeightBytes) {
    _tile_loadd(4, map, job.pixel_step);
    _tile_loadd(5, weights, kWeightBytes);
    _tile_dpbusd(0, 4, 5);
    if constexpr (BLOCKS > 1) {
      _tile_loadd(6, weights + block_step, kWeightBytes);
      _tile_dpbusd(1, 4, 6);
    }
    if constexpr (BLOCKS > 2) {
      _tile_loadd(7, weights + 2 * block_step, kWeightBytes);
      _tile_dpbusd(2, 4, 7);
      _tile_loadd(5, weights + 3 * block_step, kWeightBytes);
      _tile_dpbusd(3, 4, 5);
    }
  }
  int32_t* sums = job.sums + column * sums_step + block * kLanes;
  const size_t step = sums_step * sizeof(int32_t);
  _tile_stored(0, sums, step);
  if constexpr (BLOCKS > 1) _tile_stored(1, sums + kLanes, step);
  if constexpr (BLOCKS > 2) {
    _tile_stored(2, sums + 2 * kLanes, step);
    _tile_stored(3, sums + 3 * kLanes, step);
  }
}

// All pixels; the last tile overlaps the one before it.
template <int BLOCKS>
void SumsOfBlocks(const Int8Const& k, const Int8SumsJob& job, size_t block) {
  const size_t width = Min(kTilePixels, job.pixels);
  for (size_t column = 0; column < job.pixels; column += width) {
    SumsTile<BLOCKS>(k, job, block, Min(column, job.pixels - width));
  }
}

}  // namespace

void AmxInt8Sums(const Int8Const& k, const Int8SumsJob& job) {
  if (k.steps > kTileSteps) return kAvx512Kernels.int8_sums(k, job);
  UseTiles(Min(kTilePixels, job.pixels), k.steps);
  const size_t count = k.epilogue.block_count;
  size_t block = 0;
  for (; block + 4 <= count; block += 4) SumsOfBlocks<4>(k, job, block);
  if (block + 2 <= count) SumsOfBlocks<2>(k, job, block), block += 2;
  if (block < count) SumsOfBlocks<1>(k, job, block);
  _tile_release();  // others in the process look at whether tiles are theirs
}

}  // namespace binarize
