#pragma once

#include <cmath>
#include <cstdint>

#include "lighthouse/core/dtype.h"

namespace lighthouse::cpu {

/// Loops over the D contiguous elements of a row, written so that they vectorize and so that every
/// sum has one fixed order.

template <class T>
void copy_row(const T* __restrict__ row, int64_t dim, T* __restrict__ out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = row[d];
}

template <class T>
void zero_row(int64_t dim, T* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = T{};
}

/// sum += row
template <class T, class Acc>
void add_row(const T* __restrict__ row, int64_t dim, Acc* __restrict__ sum) {
  for (int64_t d = 0; d < dim; ++d) sum[d] += static_cast<Acc>(row[d]);
}

/// out = sum + row / divisor
template <class T, class Acc>
void add_quotient(const Acc* __restrict__ sum, const T* __restrict__ row, Acc divisor, int64_t dim,
                  Acc* __restrict__ out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = sum[d] + static_cast<Acc>(row[d]) / divisor;
}

/// out = sum / divisor, in the storage type
template <class T, class Acc>
void store_quotient(const Acc* __restrict__ sum, Acc divisor, int64_t dim, T* __restrict__ out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<T>(sum[d] / divisor);
}

/// out = sum, in the storage type
template <class T, class Acc>
void store_row(const Acc* __restrict__ sum, int64_t dim, T* __restrict__ out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<T>(sum[d]);
}

/// The Euclidean norm of a row.
template <class T>
float norm(const T* row, int64_t dim) {
  using Acc = accumulator_t<T>;
  constexpr int kLanes = 16;  // a single sum would be one chain of dependent additions
  Acc lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const Acc x = static_cast<Acc>(row[d + i]);
      lanes[i] += x * x;
    }
  }
  for (int i = 0; d < dim; ++d, ++i) {
    const Acc x = static_cast<Acc>(row[d]);
    lanes[i] += x * x;
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return static_cast<float>(std::sqrt(lanes[0]));
}

}  // namespace lighthouse::cpu
