#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "lighthouse/kernels/pieces.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse::cuda {

inline constexpr int kBlockThreads = 256;

/// While it lives, profilers that listen to NVTX show the launches made as one range of the domain
/// "lighthouse", named after the stage. Costs next to nothing where none listens.
class StageRange {
 public:
  explicit StageRange(const char* stage);
  ~StageRange();
  StageRange(const StageRange&) = delete;
  StageRange& operator=(const StageRange&) = delete;
};

/// A one-dimensional grid of that many blocks; throws std::invalid_argument where there is none so
/// large.
unsigned grid_of(int64_t blocks);

LIGHTHOUSE_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Throws std::runtime_error, saying why, where the launch just made did not succeed.
void check_launch(const char* kernel);

/// Whether all rows begin at a multiple of 16 bytes.
template <class T>
bool packs_align(const Rows<T>& rows) {
  constexpr int64_t kPack = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.batch_stride % kPack == 0 &&
         rows.head_stride % kPack == 0 && rows.row_stride % kPack == 0;
}
template <class T>
bool packs_align(const PieceRows<T>& rows) {
  return packs_align(rows.segment[0]) && packs_align(rows.segment[1]) &&
         packs_align(rows.segment[2]);
}

/// Calls f.template operator()<V>(), V elements being what a thread moves at once: 16 bytes, where
/// all rows begin at a multiple of them and have a multiple of them; else one element.
template <class T, class F, class... AllRows>
void with_pack(int64_t dim, const F& f, const AllRows&... rows) {
  constexpr int kPack = 16 / sizeof(T);
  if (dim % kPack == 0 && (... && packs_align(rows))) {
    f.template operator()<kPack>();
  } else {
    f.template operator()<1>();
  }
}

/// How the kernels that write rows divide their work: a block is x packs of a row by y rows of one
/// column (a head of q, k or v), and neighbouring blocks take neighbouring columns of the same
/// rows, which are neighbours in memory where a model's projections wrote them.
struct RowGrid {
  unsigned packs;  ///< of a row
  unsigned columns;
  unsigned rows;    ///< of a block
  unsigned chunks;  ///< of so many rows, in a column
  dim3 threads;
  unsigned blocks;

  RowGrid(int64_t batch, int64_t all_columns, int64_t rows_of_column, int64_t packs_of_row,
          int64_t rows_of_block);
};

}  // namespace lighthouse::cuda
