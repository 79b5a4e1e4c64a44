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

/// sum += row * scale
template <class T, class Acc>
void add_scaled_row(const T* __restrict__ row, Acc scale, int64_t dim, Acc* __restrict__ sum) {
  for (int64_t d = 0; d < dim; ++d) sum[d] += static_cast<Acc>(row[d]) * scale;
}

/// sum += row * scale, products += row * scale * other
template <class T, class Acc>
void add_scaled_row_and_product(const T* __restrict__ row, const T* __restrict__ other, Acc scale,
                                int64_t dim, Acc* __restrict__ sum, Acc* __restrict__ products) {
  for (int64_t d = 0; d < dim; ++d) {
    const Acc scaled = static_cast<Acc>(row[d]) * scale;
    sum[d] += scaled;
    products[d] += scaled * static_cast<Acc>(other[d]);
  }
}

/// sum += the rows, four at a time, so that `sum` is read and written once for four
template <class T, class Acc>
void add_rows(const T* rows, int64_t row_stride, int64_t count, int64_t dim,
              Acc* __restrict__ sum) {
  for (; count >= 4; count -= 4, rows += 4 * row_stride) {
    const T* __restrict__ r0 = rows;
    const T* __restrict__ r1 = rows + row_stride;
    const T* __restrict__ r2 = rows + 2 * row_stride;
    const T* __restrict__ r3 = rows + 3 * row_stride;
    for (int64_t d = 0; d < dim; ++d) {
      sum[d] += (static_cast<Acc>(r0[d]) + static_cast<Acc>(r1[d])) +
                (static_cast<Acc>(r2[d]) + static_cast<Acc>(r3[d]));
    }
  }
  for (; count > 0; --count, rows += row_stride) {
    for (int64_t d = 0; d < dim; ++d) sum[d] += static_cast<Acc>(rows[d]);
  }
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

/// out = sum + row, in the storage type; `out` may be `row`
template <class T, class Acc>
void store_sum(const Acc* __restrict__ sum, const T* row, int64_t dim, T* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<T>(sum[d] + static_cast<Acc>(row[d]));
}

/// sum += row, and the Euclidean norm of the row.
template <class T, class Acc>
float add_row_and_norm(const T* __restrict__ row, int64_t dim, Acc* __restrict__ sum) {
  // A single sum of squares would be one chain of dependent additions.
  constexpr int64_t kLanes = 8;
  Acc even[kLanes] = {};
  Acc odd[kLanes] = {};
  int64_t d = 0;
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const Acc x = static_cast<Acc>(row[d + i]);
      sum[d + i] += x;
      even[i] += x * x;
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      const Acc x = static_cast<Acc>(row[d + kLanes + i]);
      sum[d + kLanes + i] += x;
      odd[i] += x * x;
    }
  }
  for (; d < dim; ++d) {
    const Acc x = static_cast<Acc>(row[d]);
    sum[d] += x;
    even[d % kLanes] += x * x;
  }
  for (int64_t i = 0; i < kLanes; ++i) even[i] += odd[i];
  return static_cast<float>(std::sqrt(((even[0] + even[4]) + (even[1] + even[5])) +
                                      ((even[2] + even[6]) + (even[3] + even[7]))));
}

}  // namespace lighthouse::cpu
