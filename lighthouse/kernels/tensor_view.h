#pragma once

#include <cstdint>

#include "lighthouse/core/geometry.h"

namespace lighthouse {

/// Rows of D contiguous elements, by batch, head and row (a token or a gathered row): any layout
/// whose last dimension is contiguous, so that a view of (B, N, H, D) costs nothing.
/// Strides are in elements; 0 is allowed for reading.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  LIGHTHOUSE_HOST_DEVICE T* at(int64_t batch, int64_t head, int64_t row) const {
    return data + batch * batch_stride + head * head_stride + row * row_stride;
  }
};

/// The sizes that every stage shares. H / G query heads share a key/value head.
struct Shape {
  int64_t batch;   ///< B
  int64_t heads;   ///< H, query heads
  int64_t groups;  ///< G, key/value heads
  int64_t dim;     ///< D, head dimension

  /// The heads of q, of k and of v.
  LIGHTHOUSE_HOST_DEVICE int64_t columns() const { return heads + 2 * groups; }
  LIGHTHOUSE_HOST_DEVICE int64_t heads_per_group() const { return heads / groups; }
  LIGHTHOUSE_HOST_DEVICE int64_t group(int64_t head) const { return head / heads_per_group(); }
};

}  // namespace lighthouse
