// Memory that starts with a cache line: what kernels load in whole registers. An allocator's own blocks start anywhere
// (glibc's 16 bytes past a page), and then every second load of 32 bytes and every one of 64 touches two lines.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace binarize {

constexpr size_t kCacheLine = 64;

template <class T>
struct LineAllocator {
  using value_type = T;

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) noexcept {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kCacheLine})); }
  void deallocate(T* memory, size_t) noexcept { ::operator delete(memory, std::align_val_t{kCacheLine}); }

  template <class U>
  bool operator==(const LineAllocator<U>&) const noexcept { return true; }
  template <class U>
  bool operator!=(const LineAllocator<U>&) const noexcept { return false; }
};

template <class T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace binarize
