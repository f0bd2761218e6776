// Which instruction sets this CPU has *and* this operating system saves the registers of.
#pragma once

namespace binarize {

// AVX-512 F, BW, DQ, VL and VPOPCNTDQ (Ice Lake, Zen 4 and newer), with OS support for the zmm and mask state.
bool CpuHasAvx512();

}  // namespace binarize
