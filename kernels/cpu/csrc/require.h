// Failures that reach Python as a RuntimeError with exactly this text. Never inside a parallel region.
#pragma once

#include <sstream>
#include <stdexcept>

namespace prosparse {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]]
    fail(parts...);
}

}  // namespace prosparse
