#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "lighthouse/core/dtype.h"

/// A thread moves 16 bytes of a row at once, a *pack* of V elements: 8 of 16 bits, 4 of 32 or 2 of
/// 64. Where rows do not begin at multiples of 16 bytes V is 1. For D = 128 in bfloat16:
///
///     row                | pack 0 | pack 1 | pack 2 | ...  | pack 15 |
///     pack 1, as loaded  |  word 0   |  word 1   |  word 2   |  word 3   |
///     its elements       |  8  |  9  | 10  | 11  | 12  | 13  | 14  | 15  |  in float32 to be
///     summed
namespace lighthouse::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(double x, double& out) { out = x; }
__device__ inline void narrow(float x, BFloat16& out) {
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ inline void narrow(float x, Float16& out) {
  out.bits = __half_as_ushort(__float2half_rn(x));
}

/// V neighbouring elements of a row, 16 bytes or a single one, moved by one instruction. Kept as
/// they come from memory until they are used: to take them apart would wait for the load.
template <class T, int V>
struct Pack {
  static_assert(sizeof(T) * V == 16);
  uint4 words;

  __device__ static Pack zero() { return {make_uint4(0, 0, 0, 0)}; }
  __device__ static Pack load(const T* from) { return {*reinterpret_cast<const uint4*>(from)}; }
  __device__ void store(T* to) const { *reinterpret_cast<uint4*>(to) = words; }

  __device__ static Pack of(const accumulator_t<T> (&values)[V]) {
    Pack pack;
    T elements[V];
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(values[i], elements[i]);
    memcpy(&pack.words, elements, 16);
    return pack;
  }
  __device__ accumulator_t<T> operator[](int i) const {
    const uint32_t word = i * sizeof(T) / 4 == 0   ? words.x
                          : i * sizeof(T) / 4 == 1 ? words.y
                          : i * sizeof(T) / 4 == 2 ? words.z
                                                   : words.w;
    if constexpr (sizeof(T) == 8) {
      return i == 0 ? __hiloint2double(words.y, words.x) : __hiloint2double(words.w, words.z);
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word);
    } else {
      T element;
      element.bits = static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16);
      return widen(element);
    }
  }
};

template <class T>
struct Pack<T, 1> {
  T element;

  __device__ static Pack zero() { return {}; }
  __device__ static Pack load(const T* from) { return {*from}; }
  __device__ void store(T* to) const { *to = element; }
  __device__ static Pack of(const accumulator_t<T> (&values)[1]) {
    Pack pack;
    narrow(values[0], pack.element);
    return pack;
  }
  __device__ accumulator_t<T> operator[](int) const { return widen(element); }
};

/// The sums of V neighbouring columns over rows.
template <class T, int V>
struct Sums {
  using Acc = accumulator_t<T>;
  Acc at[V] = {};

  __device__ void add(const Pack<T, V>& pack) {
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] += pack[i];
  }
  __device__ void add_scaled(const Pack<T, V>& pack, Acc scale) {
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] += pack[i] * scale;
  }
  __device__ void add_scaled(const Sums& other, Acc scale) {
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] += other.at[i] * scale;
  }
  __device__ void scale(Acc factor) {
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] *= factor;
  }
  /// The sum of rows, one after the other; several loads are under way at once.
  __device__ static Sums of_rows(const T* row, int64_t stride, int count) {
    constexpr int kAtOnce = 4;
    Sums sums;
    for (; count > 0; count -= kAtOnce, row += kAtOnce * stride) {
      Pack<T, V> packs[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        packs[i] = Pack<T, V>::zero();
        if (i < count) packs[i] = Pack<T, V>::load(row + i * stride);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < count) sums.add(packs[i]);
      }
    }
    return sums;
  }
  __device__ void store(T* to) const { Pack<T, V>::of(at).store(to); }
};

}  // namespace lighthouse::cuda
