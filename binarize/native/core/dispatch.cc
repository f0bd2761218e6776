// The table of instruction sets, best first. A new ISA is one folder under isa/ and one line here.
#include "core/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "core/cpu.h"

namespace binarize {
namespace {

bool Always() { return true; }

// Another set's kernels but for a few. Put together here, as this file has no flags that not every CPU understands.
#if defined(BINARIZE_HAVE_AMX)
const Kernels kAmxKernels = [] {
  Kernels kernels = kAvx512Kernels;
  kernels.int8_sums = AmxInt8Sums;
  return kernels;
}();
#endif
#if defined(BINARIZE_HAVE_AVXVNNI)
const Kernels kAvxVnniKernels = [] {
  Kernels kernels = kAvx2Kernels;
  kernels.taps_per_step = 4;
  kernels.quantize = AvxVnniQuantize;
  kernels.int8_sums = AvxVnniInt8Sums;
  return kernels;
}();
#endif

const Isa kIsas[] = {
#if defined(BINARIZE_HAVE_AMX)
    {"amx", 5, CpuHasAmx, &kAmxKernels},
#endif
#if defined(BINARIZE_HAVE_AVX512)
    {"avx512", 2, CpuHasAvx512, &kAvx512Kernels},
#endif
#if defined(BINARIZE_HAVE_AVX512BW)
    {"avx512bw", 4, CpuHasAvx512Bw, &kAvx512BwKernels},
#endif
#if defined(BINARIZE_HAVE_AVXVNNI)
    {"avxvnni", 6, CpuHasAvxVnni, &kAvxVnniKernels},
#endif
#if defined(BINARIZE_HAVE_AVX2)
    {"avx2", 1, CpuHasAvx2, &kAvx2Kernels},
#endif
#if defined(BINARIZE_HAVE_NEON)
    {"neon", 3, Always, &kNeonKernels},  // part of every aarch64
#endif
    {"scalar", 0, Always, &kScalarKernels},
};

std::string SupportedNames() {
  std::string names;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  return names;
}

}  // namespace

const Isa& SelectIsa(const char* forced) {
  const std::string name = forced ? forced : "";
  const std::string prefix = "BINARIZE_ISA=" + name + ": ";
  for (const Isa& isa : kIsas) {
    if (!name.empty() && name != isa.name) continue;
    if (isa.supported()) return isa;
    if (!name.empty()) {
      throw std::runtime_error(prefix + "this CPU or operating system does not support it; usable here: " +
                               SupportedNames());
    }
  }
  throw std::runtime_error(prefix + "this build has no such instruction set; usable here: " + SupportedNames());
}

std::vector<int64_t> SupportedIsas() {
  std::vector<int64_t> ids;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) ids.push_back(isa.id);
  }
  return ids;
}

const Isa& SelectIsaFromEnvironment() { return SelectIsa(std::getenv("BINARIZE_ISA")); }

}  // namespace binarize
