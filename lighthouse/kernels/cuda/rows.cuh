#pragma once

#include <algorithm>

#include "lighthouse/kernels/cuda/launch.h"
#include "lighthouse/kernels/cuda/vector.cuh"

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
  enum { kQ, kK, kV } of;
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

/// Rows that a block takes of one column.
inline constexpr int kRows = 64;

/// Tokens whose sum or mean a row is: `count` of them from `first` on.
template <class T>
struct Span {
  const T* first;
  int count;
};

/// Writes the sum or the mean of a span for each row of a block; of one token a copy, of none
/// zeros.
/// @tparam kLong whether a span may be longer than `alone`
/// @param alone longer spans are summed by all threads of the block together
/// @param rows how many the block has, at most kRows
/// @param stride from token to token
/// @param span_of row -> Span
template <class T, int V, bool kLong, bool kMean, class SpanOf>
__device__ void reduce_spans(unsigned packs, int rows, int alone, int64_t stride,
                             const SpanOf& span_of, T* out, int64_t out_stride) {
  using Acc = accumulator_t<T>;
  __shared__ const T* firsts[kRows];
  __shared__ int counts[kRows];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int x_threads = static_cast<int>(blockDim.x), y_threads = static_cast<int>(blockDim.y);
  for (int row = y * x_threads + x; row < rows; row += x_threads * y_threads) {
    const Span<T> span = span_of(row);
    firsts[row] = span.first;
    counts[row] = span.count;
  }
  __syncthreads();

  const auto finish = [](Sums<T, V>& sums, int count) {
    if (kMean) sums.scale(Acc{1} / static_cast<Acc>(count));
    return Pack<T, V>::of(sums.at);
  };
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
        if (kLong && count > alone) continue;
        if (count > 1) {
          auto sums = Sums<T, V>::of_rows(firsts[first + i] + pack * V, stride, count);
          result[i] = finish(sums, count);
        }
        result[i].store(out + (first + i) * out_stride + pack * V);
      }
    }
  }

  if constexpr (kLong) {
    __shared__ Acc partial[kBlockThreads][V];
    for (int row = 0; row < rows; ++row) {
      const int count = counts[row];
      if (count <= alone) continue;
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
          finish(sums, count).store(out + row * out_stride + pack * V);
        }
        __syncthreads();
      }
    }
  }
}

/// Level-1 windows, or nodes, that a block takes at most; of long ones fewer, so that there are
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

/// In shared memory, for each of the nodes of a block: the rows that its ancestors and itself have,
/// by level, or -1, and, if kScaled, what scales them; at level 0 the row of its first child.
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
