// Chooses the kernels for this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/kernels.h"

namespace binarize {

struct Isa {
  const char* name;
  int64_t id;  // what the op KernelInfo reports; part of the public interface, never renumber
  bool (*supported)();
  const Kernels* kernels;
};

// The named instruction set, or the best one when `forced` is null or empty.
// Throws std::runtime_error when the name is unknown or the machine lacks it: a forced ISA never falls back.
const Isa& SelectIsa(const char* forced);

// The ids of those this build and machine can run, best first.
std::vector<int64_t> SupportedIsas();

// SelectIsa with the environment variable BINARIZE_ISA.
const Isa& SelectIsaFromEnvironment();

}  // namespace binarize
