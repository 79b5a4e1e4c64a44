#pragma once

#include <algorithm>

#include "lighthouse/kernels/cuda/launch.h"
#include "lighthouse/kernels/cuda/vector.cuh"

/// What the kernels that write rows share. A *column* is one head of q, k or v; a block takes a
/// *chunk* of one column's rows (or of its windows), and its threads stand in a plane: along x the
/// packs of a row, 16 bytes each, along y the rows.
///
///                    column 0   column 1 ...               x: pack 0  pack 1 ...
///                    q head 0   q head 1                y
///     chunk 0        block 0    block 1                 row 0 |------|------|
///     chunk 1        block C    block C + 1             row 1 |------|------|
///
/// Blocks that follow one another take the same rows of neighbouring columns, which are neighbours
/// in memory where a model's projections wrote them.
namespace lighthouse::cuda {

/// Where a block of a RowGrid stands.
struct RowBlock {
  unsigned column;
  unsigned chunk;
  unsigned batch;

  __device__ explicit RowBlock(const RowGrid& grid) {
    column = blockIdx.x % grid.columns;
    const unsigned rest = blockIdx.x / grid.columns;
    chunk = rest % grid.chunks;
    batch = rest / grid.chunks;
  }
};

/// A head of q, k or v, by its place among all of them: q's heads first, then k's, then v's.
struct Column {
  enum Kind { kQ, kK, kV };
  Kind of;
  int64_t head;
  int64_t group;

  __device__ Column(const Shape& shape, int64_t column) {
    of = column < shape.heads ? kQ : column < shape.heads + shape.groups ? kK : kV;
    head = of == kQ ? column : (column - shape.heads) % shape.groups;
    group = of == kQ ? shape.group(head) : head;
  }
  template <class R>
  __device__ const R& choose(const R& q, const R& k, const R& v) const {
    return of == kQ ? q : of == kK ? k : v;
  }
};

/// The number of a thread in its block, and of the threads that the block has.
__device__ inline int thread_of_block() {
  return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
}
__device__ inline int threads_of_block() { return static_cast<int>(blockDim.x * blockDim.y); }

/// Rows that a block takes of one column.
inline constexpr int kRows = 64;

/// Tokens whose sum or mean a row is: `count` of them from `first` on.
template <class T>
struct Span {
  const T* first;
  int count;
};

template <class T, int V, bool kMean>
__device__ Pack<T, V> finish_span(Sums<T, V>& sums, int count) {
  using Acc = accumulator_t<T>;
  if (kMean) sums.scale(Acc{1} / static_cast<Acc>(count));
  return Pack<T, V>::of(sums.at);
}

/// The part of reduce_spans for spans longer than `longest`: for each, all threads of the block.
/// Along y they divide its tokens; their partial sums are added in the order of tokens.
template <class T, int V, bool kMean>
__device__ void reduce_long_spans(unsigned packs, int rows, int longest, int64_t stride,
                                  const T* const* firsts, const int* counts, T* out,
                                  int64_t out_stride) {
  using Acc = accumulator_t<T>;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int x_threads = static_cast<int>(blockDim.x), y_threads = static_cast<int>(blockDim.y);
  __shared__ Acc partial[kBlockThreads][V];
  for (int row = 0; row < rows; ++row) {
    const int count = counts[row];
    if (count <= longest) continue;
    const int64_t begin = static_cast<int64_t>(count) * y / y_threads;
    const int64_t end = static_cast<int64_t>(count) * (y + 1) / y_threads;
    for (unsigned base = 0; base < packs; base += blockDim.x) {
      const unsigned pack = base + threadIdx.x;
      Sums<T, V> sums;
      if (pack < packs) {
        sums = Sums<T, V>::of_rows(firsts[row] + begin * stride + pack * V, stride,
                                   static_cast<int>(end - begin));
      }
#pragma unroll
      for (int i = 0; i < V; ++i) partial[y * x_threads + x][i] = sums.at[i];
      __syncthreads();
      if (y == 0 && pack < packs) {
        for (int other = 1; other < y_threads; ++other) {
#pragma unroll
          for (int i = 0; i < V; ++i) sums.at[i] += partial[other * x_threads + x][i];
        }
        finish_span<T, V, kMean>(sums, count).store(out + row * out_stride + pack * V);
      }
      __syncthreads();
    }
  }
}

/// Writes the sum or the mean of a span for each row of a block; of one token a copy, of none
/// zeros.
/// @tparam kLong whether a span may be longer than `longest`
/// @param rows how many the block has, at most kRows
/// @param longest the longest span that a single thread sums (of each pack)
/// @param stride from token to token
/// @param span_of row -> Span
template <class T, int V, bool kLong, bool kMean, class SpanOf>
__device__ void reduce_spans(unsigned packs, int rows, int longest, int64_t stride,
                             const SpanOf& span_of, T* out, int64_t out_stride) {
  __shared__ const T* firsts[kRows];
  __shared__ int counts[kRows];
  for (int row = thread_of_block(); row < rows; row += threads_of_block()) {
    const Span<T> span = span_of(row);
    firsts[row] = span.first;
    counts[row] = span.count;
  }
  __syncthreads();

  const int y = static_cast<int>(threadIdx.y), y_threads = static_cast<int>(blockDim.y);
  for (unsigned pack = threadIdx.x; pack < packs; pack += blockDim.x) {
    // Four neighbouring rows at once: often the children of one entry.
    constexpr int kAtOnce = 4;
    for (int first = y * kAtOnce; first < rows; first += y_threads * kAtOnce) {
      Pack<T, V> result[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        result[i] = Pack<T, V>::zero();
        if (first + i < rows && counts[first + i] == 1) {
          result[i] = Pack<T, V>::load(firsts[first + i] + pack * V);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= rows) break;
        const int count = counts[first + i];
        if (kLong && count > longest) continue;
        if (count > 1) {
          auto sums = Sums<T, V>::of_rows(firsts[first + i] + pack * V, stride, count);
          result[i] = finish_span<T, V, kMean>(sums, count);
        }
        result[i].store(out + (first + i) * out_stride + pack * V);
      }
    }
  }
  if constexpr (kLong) {
    reduce_long_spans<T, V, kMean>(packs, rows, longest, stride, firsts, counts, out, out_stride);
  }
}

/// A *node* is a level-1 window, of tokens or of positions: what its ancestors and itself add is
/// the same for all p of them. A block takes at most kNodes; of long ones fewer, so that there are
/// blocks enough.
inline constexpr int kNodes = 64;
inline int64_t nodes_of_block(const Geometry& g) {
  return std::clamp<int64_t>(256 / g.pooling, 1, kNodes);
}

/// The row of the first of the p children of a level-1 window, or -1 where they are not in the
/// sequence.
__device__ inline int64_t first_child(const Geometry& g, const Slot* slots, int64_t window) {
  return row_of(g, slots, 0, window * g.pooling);
}

/// In shared memory, for each node of a block and each level above 0: the row of the node's entry
/// there, or -1, and, if kScaled, what scales it; at level 0 the row of its first child.
///
///                node 0   node 1   node 2  ...
///     level 2      17       17       17        the same ancestor
///     level 1       5       -1       14
///     level 0       1       -1       10        the first of p rows, which follow one another
template <class Acc, bool kScaled>
class LevelRows {
 public:
  static int64_t bytes(const Geometry& g) {
    return g.levels * kNodes * static_cast<int64_t>((kScaled ? sizeof(Acc) : 0) + sizeof(int));
  }

  __device__ explicit LevelRows(int levels) : levels_(levels) {
    extern __shared__ double shared[];
    scales_ = reinterpret_cast<Acc*>(shared);
    rows_ = reinterpret_cast<int*>(scales_ + (kScaled ? levels * kNodes : 0));
  }
  __device__ int& row(int level, int node) const { return rows_[level * kNodes + node]; }
  __device__ Acc& scale(int level, int node) const { return scales_[level * kNodes + node]; }

  /// Looks all rows up, by all threads of the block together, and waits until they are there.
  /// @param index_of (level, node) -> the index of the entry, or -1; at level 0 that of the level-1
  /// window whose children are meant
  /// @param present_of (level, index) -> the tokens of the entry's window: its scale is one over
  /// them
  template <class IndexOf, class PresentOf>
  __device__ void look_up(const Geometry& g, const Slot* slots, int nodes, const IndexOf& index_of,
                          const PresentOf& present_of) const {
    for (int i = thread_of_block(); i < levels_ * kNodes; i += threads_of_block()) {
      const int level = i / kNodes, node = i % kNodes;
      if (node >= nodes) continue;
      const int64_t index = index_of(level, node);
      const int64_t found = index < 0    ? -1
                            : level == 0 ? first_child(g, slots, index)
                                         : row_of(g, slots, level, index);
      row(level, node) = static_cast<int>(found);
      if (kScaled && level > 0) {
        scale(level, node) = Acc{1} / static_cast<Acc>(present_of(level, index));
      }
    }
    __syncthreads();
  }

  /// The sum over levels 1 and above, coarse to fine. The loads of several levels are under way at
  /// once.
  template <class T, int V>
  __device__ Sums<T, V> sum(int node, const T* from, int64_t stride) const {
    constexpr int kAtOnce = 2;
    Sums<T, V> sums;
    for (int top = levels_ - 1; top > 0; top -= kAtOnce) {
      Pack<T, V> packs[kAtOnce];
      int rows[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        rows[i] = top - i > 0 ? row(top - i, node) : -1;
        if (rows[i] >= 0) packs[i] = Pack<T, V>::load(from + rows[i] * stride);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (rows[i] < 0) continue;
        if constexpr (kScaled) {
          sums.add_scaled(packs[i], scale(top - i, node));
        } else {
          sums.add(packs[i]);
        }
      }
    }
    return sums;
  }

 private:
  int levels_;
  Acc* scales_;
  int* rows_;
};

/// Rows that follow one another in memory.
template <class T>
struct RowRun {
  T* row;  ///< the first, at the pack of this thread
  int64_t stride;
};

/// Writes `count` rows: to each the sum `above`, plus a row of its own where there is one, plus, if
/// kMore, one of `more`. The loads of several rows are under way at once.
/// @param own i -> the row of `from` to add to row i, or -1
template <class T, int V, bool kMore, class Own>
__device__ void store_sums(const Sums<T, V>& above, int count, const RowRun<const T>& from,
                           const Own& own, const RowRun<const T>& more, RowRun<T> to) {
  constexpr int kAtOnce = 4;
  for (int first = 0; first < count; first += kAtOnce) {
    Pack<T, V> packs[kAtOnce];
    Pack<T, V> more_packs[kAtOnce];
    int rows[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      rows[i] = first + i < count ? own(first + i) : -1;
      if (rows[i] >= 0) packs[i] = Pack<T, V>::load(from.row + rows[i] * from.stride);
      if (kMore && first + i < count) {
        more_packs[i] = Pack<T, V>::load(more.row + (first + i) * more.stride);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to.row += to.stride) {
      if (first + i >= count) break;
      Sums<T, V> sums = above;
      if (rows[i] >= 0) sums.add(packs[i]);
      if constexpr (kMore) sums.add(more_packs[i]);
      sums.store(to.row);
    }
  }
}

/// Calls f.template operator()<kLong>().
template <class F>
void with_long_spans(bool long_spans, const F& f) {
  if (long_spans) {
    f.template operator()<true>();
  } else {
    f.template operator()<false>();
  }
}

}  // namespace lighthouse::cuda
