#pragma once

#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 2, select: which entries are refined, tile by tile and coarse to fine, and the order of
/// the gathered sequence, the forest in post-order.
///
/// In each tile and at each level the m/2 candidates (rounded down) with the highest scores by Q
/// are refined, then of the others the m - m/2 with the highest by K; all where there are m or
/// fewer. A tie goes to the lower index; -0 equals +0. Entry 0 of every level comes before every
/// other. NaN counts as -infinity.
struct Select {
  Geometry geometry;
  Shape shape;  ///< only the batch and the groups are used
  SelectionRule rule;
  const float* scores_q;  ///< (B, G, E)
  const float* scores_k;  ///< (B, G, E)
  int32_t* rows;          ///< (B, G, S): the id of each row's entry
  Slot* slots;            ///< (B, G, E)
};

namespace cpu {

/// Work item: (b G + g) T + t, a tile of a key/value head. Every element of `rows` and `slots` that
/// belongs to the tile is written.
void select(const Select& args, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

/// Bytes that `select` needs room for, as `score`; 0 where a tile fits into a block's shared
/// memory.
int64_t select_workspace_bytes(const Geometry& geometry, const Shape& shape);

void select(const Select& args, void* workspace, Stream stream);

}  // namespace cuda
}  // namespace lighthouse
