#pragma once

#include <cstdint>

namespace lighthouse::data {

/// FNV-1a of bytes, going on from `state`.
template <class Bytes>
uint64_t hash(const Bytes& bytes, uint64_t state = 0xcbf29ce484222325u) {
  for (const auto byte : bytes) state = (state ^ static_cast<uint8_t>(byte)) * 0x100000001b3u;
  return state;
}

}  // namespace lighthouse::data
