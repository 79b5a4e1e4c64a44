#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lighthouse::data {

/// Whether bytes that come piece by piece are text: valid UTF-8 without byte 0.
class TextCheck {
 public:
  /// Whether they still are. Once they are not, nothing may follow.
  bool feed(std::string_view piece);
  /// Whether all that came is.
  bool finish();

  /// Whether what is wrong is a byte 0, and not UTF-8.
  bool found_zero() const { return found_zero_; }
  /// What is wrong, "byte 17 is not UTF-8", counted from 0; of a character of several bytes the
  /// first.
  std::string fault() const;

 private:
  uint64_t position_ = 0;            ///< of the next byte
  uint64_t character_ = 0;           ///< where the last character of several bytes begins
  int following_ = 0;                ///< bytes that it still lacks
  uint8_t least_ = 0x80, most_ = 0;  ///< what the next of them may be
  bool found_zero_ = false;
};

}  // namespace lighthouse::data
