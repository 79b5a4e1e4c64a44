#include "lighthouse/data/text_check.h"

#include <cstring>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

/// Whether the eight bytes are all from 1 to 0x7f.
bool are_plain(const uint8_t* bytes) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof(word));
  return ((word | (word - 0x0101010101010101u)) & 0x8080808080808080u) == 0;
}

}  // namespace

bool TextCheck::feed(std::string_view piece) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(piece.data());
  const size_t size = piece.size();
  for (size_t i = 0; i < size;) {
    if (following_ == 0) {
      while (size - i >= 8 && are_plain(bytes + i)) i += 8;
      if (i == size) break;
    }
    const uint8_t byte = bytes[i];
    if (following_ > 0) {
      if (byte < least_ || byte > most_) return false;
      --following_;
      least_ = 0x80;
      most_ = 0xbf;
    } else if (byte == 0 || byte >= 0x80) {
      character_ = position_ + i;
      found_zero_ = byte == 0;
      // Bytes that follow a lead byte are 10xxxxxx; the first of them is bounded further, against
      // overlong forms, surrogates, and points past U+10FFFF.
      if (byte < 0xc2 || byte > 0xf4) return false;
      following_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
      least_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
      most_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    }
    ++i;
  }
  position_ += size;
  return true;
}

bool TextCheck::finish() { return following_ == 0; }

std::string TextCheck::fault() const {
  return message("byte ", character_, found_zero_ ? " is NUL" : " is not UTF-8");
}

}  // namespace lighthouse::data
