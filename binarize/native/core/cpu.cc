// CPUID and XGETBV. CPUID alone is not enough: an OS or hypervisor may not save the wide registers, and then
// the first zmm instruction faults although the feature bits are set.
#include "core/cpu.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace binarize {
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers Cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int out[4];
  __cpuid(out, 0);
  if (static_cast<uint32_t>(out[0]) < leaf) return r;
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros above the maximum leaf
#endif
  return r;
}

uint64_t EnabledStates() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t eax, edx;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (static_cast<uint64_t>(edx) << 32) | eax;
#endif
}

constexpr bool Bit(uint64_t v, int i) { return (v >> i) & 1; }

// Whether the operating system saves all registers of `states`, bits of XCR0.
bool Saves(uint64_t states) {
  constexpr int kOsxsave = 27;
  return Bit(Cpuid(1, 0).ecx, kOsxsave) && (EnabledStates() & states) == states;
}

constexpr uint64_t kXmmYmm = 0x06;      // bits 1 and 2
constexpr uint64_t kXmmYmmZmm = 0xE6;   // and mask registers 5, zmm0-15 6, zmm16-31 7
constexpr uint64_t kTiles = 0x60000;    // their configuration 17, their data 18

bool FindAvx2() {
  if (!Saves(kXmmYmm)) return false;
  const Registers first = Cpuid(1, 0), extended = Cpuid(7, 0);
  const bool fma = Bit(first.ecx, 12), avx = Bit(first.ecx, 28), f16c = Bit(first.ecx, 29);
  return fma && avx && f16c && Bit(extended.ebx, 5);
}

bool FindAvxVnni() {
  constexpr int kAvxVnni = 4;
  return CpuHasAvx2() && Bit(Cpuid(7, 1).eax, kAvxVnni);
}

bool FindAvx512Bw() {
  if (!CpuHasAvx2() || !Saves(kXmmYmmZmm)) return false;
  const Registers r = Cpuid(7, 0);
  const bool f = Bit(r.ebx, 16), dq = Bit(r.ebx, 17), bw = Bit(r.ebx, 30), vl = Bit(r.ebx, 31);
  return f && dq && bw && vl;
}

bool FindAvx512() {
  constexpr int kVnni = 11, kVpopcntdq = 14;
  const uint32_t ecx = Cpuid(7, 0).ecx;
  return CpuHasAvx512Bw() && Bit(ecx, kVnni) && Bit(ecx, kVpopcntdq);
}

// Tiles are a state that a Linux process has to ask for; other systems are not known to grant it.
bool MayUseTiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool FindAmx() {
  constexpr int kTile = 24, kInt8 = 25;
  const uint32_t edx = Cpuid(7, 0).edx;
  return CpuHasAvx512() && Bit(edx, kTile) && Bit(edx, kInt8) && Saves(kXmmYmmZmm | kTiles) && MayUseTiles();
}

}  // namespace

// Asked once per process: under a hypervisor each CPUID is a trap of tens of microseconds.
bool CpuHasAvx2() {
  static const bool has = FindAvx2();
  return has;
}

bool CpuHasAvxVnni() {
  static const bool has = FindAvxVnni();
  return has;
}

bool CpuHasAvx512Bw() {
  static const bool has = FindAvx512Bw();
  return has;
}

bool CpuHasAvx512() {
  static const bool has = FindAvx512();
  return has;
}

bool CpuHasAmx() {
  static const bool has = FindAmx();
  return has;
}

}  // namespace binarize

#else

namespace binarize {
bool CpuHasAvx2() { return false; }
bool CpuHasAvxVnni() { return false; }
bool CpuHasAvx512Bw() { return false; }
bool CpuHasAvx512() { return false; }
bool CpuHasAmx() { return false; }
}  // namespace binarize

#endif
