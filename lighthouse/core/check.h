#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lighthouse {

/// The parts of a message, streamed one after the other.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws std::invalid_argument with the parts as its message unless `condition` holds: for what a
/// user can get wrong. Name the argument, its value, and what it must be.
template <class... Parts>
void check_argument(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(message(parts...));
}

}  // namespace lighthouse
