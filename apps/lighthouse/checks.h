#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>

#include "lighthouse/core/check.h"

namespace lighthouse::app {

/// The check of an option that is an integer from `least` to `most`.
inline CLI::Validator integer(int64_t least, int64_t most = std::numeric_limits<int64_t>::max()) {
  const bool bounded = most < std::numeric_limits<int64_t>::max();
  const auto check = [=](const std::string& text) -> std::string {
    int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [parsed, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && parsed == end && least <= value && value <= most) return "";
    return bounded ? message("'", text, "' is not an integer from ", least, " to ", most)
                   : message("'", text, "' is not an integer of at least ", least);
  };
  return {check, bounded ? message(least, "-", most) : message(">=", least)};
}

/// The check of an option that must not be empty, as where a variable of a shell is not set.
inline CLI::Validator not_empty() {
  return {[](const std::string& text) { return text.empty() ? "it is empty" : std::string(); }, ""};
}

}  // namespace lighthouse::app
