// Size arithmetic that refuses to wrap: every size of a model file is untrusted.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace binarize {

// A model or an input that breaks the operator's contract.
struct InvalidModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kMaxElements = int64_t{1} << 40;  // far above memory, far below overflow of a byte count

inline int64_t CheckedProduct(int64_t a, int64_t b, const char* what) {
  if (a < 0 || b < 0 || (b != 0 && a > kMaxElements / b)) {
    throw InvalidModel(std::string(what) + " is too large: " + std::to_string(a) + " * " + std::to_string(b));
  }
  return a * b;
}

inline void Require(bool condition, const std::string& message) {
  if (!condition) throw InvalidModel(message);
}

// `message` makes the message. For what every call of an operator asks: composing it each time would cost more than the
// smallest nodes.
template <typename Message, typename = decltype(std::declval<Message>()())>
void Require(bool condition, const Message& message) {
  if (!condition) throw InvalidModel(message());
}

}  // namespace binarize
