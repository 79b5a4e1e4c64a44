#include "lighthouse/core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace lighthouse {
namespace {

template <class T>
class Dtype : public ::testing::Test {};
using SixteenBits = ::testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(Dtype, SixteenBits);

template <class T>
T from_bits(int bits) {
  T value;
  value.bits = static_cast<uint16_t>(bits);
  return value;
}

constexpr int kFloat16Infinity = 0x7c00;
constexpr int kBFloat16Infinity = 0x7f80;
template <class T>
constexpr int kInfinity = std::is_same_v<T, BFloat16> ? kBFloat16Infinity : kFloat16Infinity;

/// The value that the bits of a finite number or infinity mean, by the definition of the format.
template <class T>
double meaning(int bits) {
  constexpr int kMantissaBits = std::is_same_v<T, BFloat16> ? 7 : 10;
  constexpr int kBias = std::is_same_v<T, BFloat16> ? 127 : 15;
  const int exponent = (bits & 0x7fff) >> kMantissaBits;
  const int mantissa = bits & ((1 << kMantissaBits) - 1);
  if ((bits & 0x7fff) == kInfinity<T>) return bits & 0x8000 ? -HUGE_VAL : HUGE_VAL;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - kBias - kMantissaBits)
                    : std::ldexp(mantissa + (1 << kMantissaBits), exponent - kBias - kMantissaBits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TYPED_TEST(Dtype, EveryValueMeansWhatItsBitsSay) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(from_bits<TypeParam>(bits));
    if ((bits & 0x7fff) > kInfinity<TypeParam>) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(TypeParam(value)))) << bits;
    } else {
      ASSERT_EQ(value, meaning<TypeParam>(bits)) << bits;
      ASSERT_EQ(TypeParam(value).bits, bits);
    }
  }
}

TYPED_TEST(Dtype, RoundsToNearestAndTiesToEven) {
  for (int bits = 0; bits < kInfinity<TypeParam>; ++bits) {
    // Infinity stands for the value that would come next: the format's rounding knows no largest.
    const double low = meaning<TypeParam>(bits);
    const double high = bits + 1 < kInfinity<TypeParam> ? meaning<TypeParam>(bits + 1)
                                                        : 2 * low - meaning<TypeParam>(bits - 1);
    const auto middle = static_cast<float>((low + high) / 2);  // exact
    const int even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(TypeParam(middle).bits, even) << bits;
    ASSERT_EQ(TypeParam(-middle).bits, even | 0x8000) << bits;
    ASSERT_EQ(TypeParam(std::nextafter(middle, 0.f)).bits, bits);
    ASSERT_EQ(TypeParam(std::nextafter(middle, HUGE_VALF)).bits, bits + 1);
  }
}

TYPED_TEST(Dtype, KeepsInfinity) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(TypeParam(kInf).bits, kInfinity<TypeParam>);
  EXPECT_EQ(TypeParam(-kInf).bits, kInfinity<TypeParam> | 0x8000);
  EXPECT_EQ(TypeParam(std::numeric_limits<float>::max()).bits, kInfinity<TypeParam>);
}

}  // namespace
}  // namespace lighthouse
