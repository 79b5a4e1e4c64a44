#pragma once

#include <cstddef>
#include <string>

namespace lighthouse {

/// Two digits for each byte.
inline std::string hex(const void* bytes, size_t count) {
  constexpr char kDigits[] = "0123456789abcdef";
  const auto* values = static_cast<const unsigned char*>(bytes);
  std::string digits;
  for (size_t i = 0; i < count; ++i) digits += {kDigits[values[i] >> 4], kDigits[values[i] & 15]};
  return digits;
}

}  // namespace lighthouse
