#include "lighthouse/kernels/gather.h"

#include "lighthouse/kernels/cuda/rows.cuh"

/// Gather writes row s of the gathered sequence: a token's copy, a root from the score stage, or
/// the mean of a window between. The rows are the forest of entries in post-order: children, then
/// their parent. For L = 3, p = 2, N = 8, where root 0 and its second pair are refined:
///
///     tokens                 0   1   2   3   4   5   6   7
///     level 1              |   0   |   1   |   2   |   3   |
///     level 2              |       0       |       1       |
///
///     row                  0     1     2     3     4     5
///     entry (level, index) 1,0   0,2   0,3   1,1   2,0   2,1
///
/// Its adjoint goes the other way: token t adds the rows of its ancestors, each over the size of
/// its window, and its own. Tokens 2 and 3 hear of rows 4 and 3, and of rows 1 and 2 each; tokens 4
/// to 7 of row 5 alone. The slots of the entries above level 0 say so: 0, 3, none, none; 4, 5.
namespace lighthouse::cuda {
namespace {

/// Windows between the roots and the tokens that have more tokens than this are summed by a whole
/// block: so long they are only with three levels of large p, or with more levels, and few rows.
constexpr int kLongestPerThread = 64;

template <class T, int V, bool kLong>
__global__ void __launch_bounds__(kBlockThreads, 4)
    gather_kernel(const __grid_constant__ Gather<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const Column column(args.shape, block.column);
  const int32_t* ids = args.rows + (block.batch * args.shape.groups + column.group) * g.rows;
  const auto& tokens = column.choose(args.q, args.k, args.v);
  const auto& gathered = column.choose(args.gathered_q, args.gathered_k, args.gathered_v);
  const int64_t first_row = static_cast<int64_t>(block.chunk) * kRows;
  const int rows = static_cast<int>(min(int64_t{kRows}, g.rows - first_row));

  const auto span_of = [&](int row) -> Span<T> {
    const int64_t id = ids[first_row + row];
    const int64_t level = g.level(id);
    const int64_t index = id - g.first[level];
    if (level > 0 && level == g.root_level()) {
      const int64_t root = (block.batch * g.roots + index) * grid.columns + block.column;
      return {args.roots + root * args.shape.dim, 1};
    }
    const TokenRange window =
        args.documents.range(g, block.batch, index * g.window[level], g.window[level]);
    return {tokens.at(block.batch, column.head, window.first), static_cast<int>(window.count)};
  };
  reduce_spans<T, V, kLong, /*kMean=*/true>(
      grid.packs, rows, kLongestPerThread, tokens.row_stride, span_of,
      gathered.at(block.batch, column.head, first_row), gathered.row_stride);
}

/// A row of threads takes the p tokens of one node after the other.
/// @tparam kPieces whether there are gradients of pieces to add to
template <class T, int V, bool kPieces>
__global__ void __launch_bounds__(kBlockThreads, kPieces ? 3 : 4)
    gather_backward_kernel(const __grid_constant__ GatherBackward<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const Column column(args.shape, block.column);
  const int64_t first_node = static_cast<int64_t>(block.chunk) * grid.rows;
  const int nodes = static_cast<int>(
      min(int64_t{grid.rows}, ceil_div(args.documents.positions(g), g.pooling) - first_node));

  // The tokens of each node.
  __shared__ int firsts[kNodes], counts[kNodes];
  for (int node = thread_of_block(); node < nodes; node += threads_of_block()) {
    const TokenRange window =
        args.documents.range(g, block.batch, (first_node + node) * g.pooling, g.pooling);
    firsts[node] = static_cast<int>(window.first);
    counts[node] = static_cast<int>(window.count);
  }
  const LevelRows<accumulator_t<T>, true> rows(static_cast<int>(g.levels));
  rows.look_up(
      g, args.slots + (block.batch * args.shape.groups + column.group) * g.coarse_entries(), nodes,
      [&](int level, int node) {
        const int64_t window = first_node + node;
        return level == 0 ? window : window / g.window[level - 1];
      },
      [&](int level, int64_t index) {
        return args.documents.range(g, block.batch, index * g.window[level], g.window[level]).count;
      });

  const auto& gathered =
      column.choose(args.grad_gathered_q, args.grad_gathered_k, args.grad_gathered_v);
  const auto& grad = column.choose(args.grad_q, args.grad_k, args.grad_v);
  const auto& near = column.choose(args.near.q, args.near.k, args.near.v);
  for (unsigned pack = threadIdx.x; pack < grid.packs; pack += blockDim.x) {
    const RowRun<const T> from{gathered.at(block.batch, column.head, 0) + pack * V,
                               gathered.row_stride};
    for (int node = static_cast<int>(threadIdx.y); node < nodes;
         node += static_cast<int>(blockDim.y)) {
      const int first = firsts[node], present = counts[node];
      const Sums<T, V> above = rows.template sum<T, V>(node, from.row, from.stride);
      const int children = rows.row(0, node);
      RowRun<T> to{grad.at(block.batch, column.head, first) + pack * V, grad.row_stride};
      if constexpr (kPieces) {
        // The tokens of one piece after the other.
        for (int begin = 0, count = 0; begin < present; begin += count) {
          const Pieces::Piece piece = args.near.pieces.of(first + begin);
          count = static_cast<int>(
              min(int64_t{present} - begin, piece.begin + piece.length - (first + begin)));
          const RowRun<const T> more{
              near.at(args.near.pieces, block.batch, column.head, first + begin) + pack * V,
              near.segment[piece.segment].row_stride};
          const auto child = [&](int i) { return children < 0 ? -1 : children + begin + i; };
          store_sums<T, V, true>(above, count, from, child, more,
                                 {to.row + begin * to.stride, to.stride});
        }
      } else if (children < 0) {
        const auto same = Pack<T, V>::of(above.at);
        for (int i = 0; i < present; ++i, to.row += to.stride) same.store(to.row);
      } else {
        const auto child = [&](int i) { return children + i; };
        store_sums<T, V, false>(above, present, from, child, {}, to);
      }
    }
  }
}

}  // namespace

template <class T>
void gather(const Gather<T>& args, Stream stream) {
  const StageRange range("gather");
  if (args.shape.batch == 0) return;
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  const Rows<const T> roots{args.roots, 0, 0, 0};
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, shape.columns(), g.rows, shape.dim / V, kRows);
        with_long_spans(
            g.levels > 2 && g.window[g.root_level() - 1] > kLongestPerThread, [&]<bool kLong>() {
              gather_kernel<T, V, kLong><<<grid.blocks, grid.threads, 0, stream>>>(args, grid);
            });
      },
      args.q, args.k, args.v, roots, args.gathered_q, args.gathered_k, args.gathered_v);
  check_launch("gather");
}

template <class T>
void gather_backward(const GatherBackward<T>& args, Stream stream) {
  const StageRange range("gather_backward");
  if (args.shape.batch == 0) return;
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  const auto launch = [&]<bool kPieces>(const auto&... near) {
    with_pack<T>(
        shape.dim,
        [&]<int V>() {
          const RowGrid grid(shape.batch, shape.columns(),
                             ceil_div(args.documents.positions(g), g.pooling), shape.dim / V,
                             nodes_of_block(g));
          gather_backward_kernel<T, V, kPieces>
              <<<grid.blocks, grid.threads, LevelRows<accumulator_t<T>, true>::bytes(g), stream>>>(
                  args, grid);
        },
        args.grad_gathered_q, args.grad_gathered_k, args.grad_gathered_v, args.grad_q, args.grad_k,
        args.grad_v, near...);
  };
  if (args.near.pieces.tokens > 0) {
    launch.template operator()<true>(args.near.q, args.near.k, args.near.v);
  } else {
    launch.template operator()<false>();
  }
  check_launch("gather_backward");
}

#define INSTANTIATE(T)                            \
  template void gather(const Gather<T>&, Stream); \
  template void gather_backward(const GatherBackward<T>&, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
