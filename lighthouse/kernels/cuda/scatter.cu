#include "lighthouse/kernels/scatter.h"

#include "lighthouse/kernels/cuda/rows.cuh"

namespace lighthouse::cuda {
namespace {

constexpr int kAlone = 16;  // every root is a sum over its window

/// A row of threads takes, one after the other, the nodes that hear from the same coarse entries:
/// the p positions with floor((j + 1) / p) = node, from j = p node - 1 on. A block first looks up
/// where the rows of its nodes are.
template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, 4)
    scatter_kernel(const __grid_constant__ Scatter<T> args, const RowGrid grid) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const int64_t h = block.column;
  const int levels = static_cast<int>(g.levels);
  const int64_t first_node = static_cast<int64_t>(block.chunk) * grid.rows;
  const int nodes =
      static_cast<int>(min(int64_t{grid.rows}, g.tokens / g.pooling + 1 - first_node));
  const Slot* slots =
      args.slots + (block.batch * args.shape.groups + args.shape.group(h)) * g.coarse_entries();

  const LevelRows<Acc, false> rows(levels);
  __shared__ int last_child_before[kNodes];
  for (int i = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); i < levels * kNodes;
       i += static_cast<int>(blockDim.x * blockDim.y)) {
    const int level = i / kNodes, node = i % kNodes;
    if (node >= nodes) continue;
    const int64_t all = first_node + node;
    if (level == 0) {
      // Of the positions, the first is the last token of the window before, the others are the
      // first tokens of the node's own.
      const int64_t before = all == 0 ? -1 : first_child(g, slots, all - 1);
      last_child_before[node] = before < 0 ? -1 : static_cast<int>(before + g.pooling - 1);
      const bool has_tokens = all * g.pooling < g.tokens;
      rows.row(0, node) = has_tokens ? static_cast<int>(first_child(g, slots, all)) : -1;
      continue;
    }
    const int64_t heard = all / g.window[level - 1] - 1;
    rows.row(level, node) = heard < 0 ? -1 : static_cast<int>(row_of(g, slots, level, heard));
  }
  __syncthreads();

  for (unsigned pack = threadIdx.x; pack < grid.packs; pack += blockDim.x) {
    const int64_t stride = args.gathered_out.row_stride;
    const T* from = args.gathered_out.at(block.batch, h, 0) + pack * V;
    T* to = args.out.at(block.batch, h, 0) + pack * V;
    for (int node = static_cast<int>(threadIdx.y); node < nodes;
         node += static_cast<int>(blockDim.y)) {
      const int64_t first = (first_node + node) * g.pooling - 1;
      const int count = static_cast<int>(min(g.pooling, g.tokens - first));
      const Sums<T, V> above = rows.template sum<T, V>(node, from, stride);
      const int before = last_child_before[node];
      const int children = rows.row(0, node);
      int64_t at = first * args.out.row_stride;
      constexpr int kAtOnce = 4;
      for (int c0 = 0; c0 < count; c0 += kAtOnce) {
        Pack<T, V> packs[kAtOnce];
        int child[kAtOnce];
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c) {
          child[c] = c0 + c == 0 ? before : children < 0 ? -1 : children + c0 + c - 1;
          if (c0 + c < count && child[c] >= 0)
            packs[c] = Pack<T, V>::load(from + child[c] * stride);
        }
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c, at += args.out.row_stride) {
          if (c0 + c >= count) break;
          if (first + c0 + c < 0) continue;
          Sums<T, V> sums = above;
          if (child[c] >= 0) sums.add(packs[c]);
          sums.store(to + at);
        }
      }
    }
  }
}

template <class T, int V, bool kLong>
__global__ void __launch_bounds__(kBlockThreads, 4)
    scatter_backward_kernel(const __grid_constant__ ScatterBackward<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const int64_t h = block.column;
  const int32_t* ids = args.rows + (block.batch * args.shape.groups + args.shape.group(h)) * g.rows;
  const int64_t first_row = static_cast<int64_t>(block.chunk) * kRows;
  const int rows = static_cast<int>(min(int64_t{kRows}, g.rows - first_row));

  const auto span_of = [&](int row) -> Span<T> {
    const int64_t id = ids[first_row + row];
    const int64_t level = g.level(id);
    const int64_t last_of_window = (id - g.first[level] + 1) * g.window[level] - 1;
    const int64_t count = max(int64_t{0}, min(g.window[level], g.tokens - last_of_window));
    return {args.grad_out.at(block.batch, h, last_of_window), static_cast<int>(count)};
  };
  reduce_spans<T, V, kLong, /*kMean=*/false>(
      grid.packs, rows, kAlone, args.grad_out.row_stride, span_of,
      args.grad_gathered_out.at(block.batch, h, first_row), args.grad_gathered_out.row_stride);
}

}  // namespace

template <class T>
void scatter(const Scatter<T>& args, Stream stream) {
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  if (shape.batch == 0) return;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        // One more than N / p: the nodes are those of j + 1.
        const RowGrid grid(shape.batch, shape.heads, g.tokens / g.pooling + 1, shape.dim / V,
                           nodes_of_block(g));
        scatter_kernel<T, V>
            <<<grid.blocks, grid.threads, LevelRows<accumulator_t<T>, false>::bytes(g), stream>>>(
                args, grid);
      },
      args.gathered_out, args.out);
  check_launch("scatter");
}

template <class T>
void scatter_backward(const ScatterBackward<T>& args, Stream stream) {
  const Shape& shape = args.shape;
  if (shape.batch == 0) return;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, shape.heads, args.geometry.rows, shape.dim / V, kRows);
        with_long_spans(args.geometry.root_window() > kAlone, [&]<bool kLong>() {
          scatter_backward_kernel<T, V, kLong>
              <<<grid.blocks, grid.threads, 0, stream>>>(args, grid);
        });
      },
      args.grad_out, args.grad_gathered_out);
  check_launch("scatter_backward");
}

#define INSTANTIATE(T)                              \
  template void scatter(const Scatter<T>&, Stream); \
  template void scatter_backward(const ScatterBackward<T>&, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
