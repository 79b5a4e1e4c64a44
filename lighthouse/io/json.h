#pragma once

#include <limits>
#include <nlohmann/json.hpp>

namespace lighthouse::io {

/// A number of a file of ours; JSON has null where it is not finite.
inline double number(const nlohmann::json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

}  // namespace lighthouse::io
