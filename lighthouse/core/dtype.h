#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace lighthouse {

/// The 16-bit floating-point types by their bits, for the kernels, which compute in float32.
/// Conversions to them round to nearest, ties to even, as PyTorch's do.

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
    bits = static_cast<uint16_t>((value != value ? u | 0x400000u : rounded) >> 16);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

struct Float16 {
  uint16_t bits;

  Float16() = default;
  explicit Float16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = u & 0x80000000u;
    const uint32_t magnitude = u ^ sign;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;  // NaN
    } else if (magnitude >= 0x47800000u) {
      half = 0x7c00u;  // 2^16 and above, infinity
    } else if (magnitude < 0x38800000u) {
      // Subnormal: adding 1/2 shifts the bits that remain to the end of the mantissa, rounded.
      half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    bits = static_cast<uint16_t>(half | sign >> 16);
  }
  explicit operator float() const {
    // Scaling by 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal.
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t shifted = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    const float scaled = std::bit_cast<float>(shifted) * 0x1p112f;
    const uint32_t magnitude =
        shifted >= 0x0f800000u ? shifted | 0x7f800000u : std::bit_cast<uint32_t>(scaled);
    return std::bit_cast<float>(magnitude | sign);
  }
};

/// The type that sums over T are taken in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

/// The largest finite value of T.
template <class T>
inline constexpr accumulator_t<T> kLargest = std::numeric_limits<accumulator_t<T>>::max();
template <>
inline constexpr float kLargest<BFloat16> = 0x1.fep127f;
template <>
inline constexpr float kLargest<Float16> = 65504.0f;

/// Expands `macro(type)` for every storage type of the kernels.
#define LIGHTHOUSE_FOR_EACH_TYPE(macro) \
  macro(float) macro(double) macro(::lighthouse::BFloat16) macro(::lighthouse::Float16)

}  // namespace lighthouse
