// Which instruction sets this CPU has *and* this operating system saves the registers of.
#pragma once

namespace binarize {

// AVX2, FMA and F16C (Haswell, Zen and newer), with OS support for the ymm state.
bool CpuHasAvx2();

// AVX-VNNI, vpdpbusd without AVX-512 (Alder Lake, its small cores too, Zen 5 and newer), and what CpuHasAvx2 asks.
bool CpuHasAvxVnni();

// AVX-512 F, BW, DQ and VL (Skylake-X and newer), and what CpuHasAvx2 asks; with OS support for the zmm and mask state.
bool CpuHasAvx512Bw();

// AVX-512 F, BW, DQ, VL, VPOPCNTDQ and VNNI (Ice Lake, Zen 4 and newer), with that OS support.
bool CpuHasAvx512();

// AMX-TILE and AMX-INT8 (Sapphire Rapids and newer) and what CpuHasAvx512 asks, on a system that lets this process use
// tiles.
bool CpuHasAmx();

}  // namespace binarize
