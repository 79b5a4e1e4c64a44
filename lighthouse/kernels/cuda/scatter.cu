#include "lighthouse/kernels/scatter.h"

#include "lighthouse/kernels/cuda/rows.cuh"

/// Scatter adds the row of an entry whose window ends at token e to the positions from e on, as
/// many as the window has tokens. In terms of j + 1 these are a window again, that of the entry's
/// right neighbour: windows of positions are those of tokens, shifted by one to the left. For
/// L = 3, p = 2 the entry that position j hears of each level:
///
///     j + 1       0   1   2   3   4   5   6   7   8
///     j               0   1   2   3   4   5   6   7
///     level 2   |      none     |       0       |  1 ..
///     level 1   | none  |   0   |   1   |   2   |  3 ..
///     level 0     -   0   1   2   3   4   5   6   7
///
/// A node is a level-1 window of j + 1: its p positions hear the same coarse entries. Of level 0
/// the first hears the last child of the token window before the node's, the others the first p - 1
/// children of the node's own (j + 1 = 4: token 3; 5: token 4).
namespace lighthouse::cuda {
namespace {

/// A root's gradient sums as many positions as its window has: longer ones, of which there are N
/// in all, are divided among the threads of a block.
constexpr int kLongestPerThread = 16;

/// A row of threads takes the p positions of one node after the other.
template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, 4)
    scatter_kernel(const __grid_constant__ Scatter<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const int64_t h = block.column;
  const int64_t first_node = static_cast<int64_t>(block.chunk) * grid.rows;
  const int nodes =
      static_cast<int>(min(int64_t{grid.rows}, g.tokens / g.pooling + 1 - first_node));
  const Slot* slots =
      args.slots + (block.batch * args.shape.groups + args.shape.group(h)) * g.coarse_entries();

  __shared__ int last_child_before[kNodes];
  for (int node = thread_of_block(); node < nodes; node += threads_of_block()) {
    const int64_t window = first_node + node;
    const int64_t before = window == 0 ? -1 : first_child(g, slots, window - 1);
    last_child_before[node] = before < 0 ? -1 : static_cast<int>(before + g.pooling - 1);
  }
  const LevelRows<accumulator_t<T>, false> rows(static_cast<int>(g.levels));
  const auto index_of = [&](int level, int node) {
    const int64_t window = first_node + node;
    if (level > 0) return window / g.window[level - 1] - 1;
    return window * g.pooling < g.tokens ? window : -1;
  };
  rows.look_up(g, slots, nodes, index_of, [](int, int64_t) { return 1; });

  for (unsigned pack = threadIdx.x; pack < grid.packs; pack += blockDim.x) {
    const RowRun<const T> from{args.gathered_out.at(block.batch, h, 0) + pack * V,
                               args.gathered_out.row_stride};
    T* const out = args.out.at(block.batch, h, 0) + pack * V;
    for (int node = static_cast<int>(threadIdx.y); node < nodes;
         node += static_cast<int>(blockDim.y)) {
      const int64_t first = (first_node + node) * g.pooling - 1;
      const int count = static_cast<int>(min(g.pooling, g.tokens - first));
      const Sums<T, V> above = rows.template sum<T, V>(node, from.row, from.stride);
      const int before = last_child_before[node];
      const int children = rows.row(0, node);
      const int skipped = first < 0 ? 1 : 0;  // there is no position -1
      const auto own = [&](int i) {
        const int place = i + skipped;
        return place == 0 ? before : children < 0 ? -1 : children + place - 1;
      };
      store_sums<T, V, false>(above, count - skipped, from, own, {},
                              {out + (first + skipped) * args.out.row_stride, args.out.row_stride});
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
    const int64_t index = id - g.first[level];
    return {args.grad_out.at(block.batch, h, g.first_hearer(level, index)),
            static_cast<int>(g.hearers(level, index))};
  };
  reduce_spans<T, V, kLong, /*kMean=*/false>(
      grid.packs, rows, kLongestPerThread, args.grad_out.row_stride, span_of,
      args.grad_gathered_out.at(block.batch, h, first_row), args.grad_gathered_out.row_stride);
}

}  // namespace

template <class T>
void scatter(const Scatter<T>& args, Stream stream) {
  const StageRange range("scatter");
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
  const StageRange range("scatter_backward");
  const Shape& shape = args.shape;
  if (shape.batch == 0) return;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, shape.heads, args.geometry.rows, shape.dim / V, kRows);
        with_long_spans(args.geometry.root_window() > kLongestPerThread, [&]<bool kLong>() {
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
