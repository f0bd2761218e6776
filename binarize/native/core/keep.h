// Values that are made once and shared by calls on any threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

namespace binarize {

// The first few values that were asked for, without locks. Of a value that there is no room for, every caller makes its
// own: a model that sees ever new shapes must not keep them all.
template <class Value>
class KeptValues {
 public:
  KeptValues() = default;
  ~KeptValues() {
    for (const std::atomic<const Value*>& place : places_) delete place.load();
  }
  KeptValues(const KeptValues&) = delete;
  KeptValues& operator=(const KeptValues&) = delete;

  // The kept value that `is_wanted(value)` accepts; else what `make()`, a unique_ptr, returns, now kept or in `own`.
  template <class IsWanted, class Make>
  const Value& FindOrMake(const IsWanted& is_wanted, const Make& make, std::unique_ptr<const Value>& own) const {
    for (std::atomic<const Value*>& place : places_) {
      const Value* kept = place.load(std::memory_order_acquire);
      if (kept == nullptr) {
        if (own == nullptr) own = make();
        if (place.compare_exchange_strong(kept, own.get(), std::memory_order_acq_rel)) return *own.release();
      }
      if (is_wanted(*kept)) return *kept;  // perhaps what another thread has just put there
    }
    if (own == nullptr) own = make();
    return *own;
  }

 private:
  static constexpr size_t kPlaces = 4;
  mutable std::atomic<const Value*> places_[kPlaces] = {};
};

}  // namespace binarize
