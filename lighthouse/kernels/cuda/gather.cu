#include "lighthouse/kernels/gather.h"

#include "lighthouse/kernels/cuda/rows.cuh"

namespace lighthouse::cuda {
namespace {

constexpr int kAlone = 64;  // few rows are means of long windows

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
    return {tokens.at(block.batch, column.head, index * g.window[level]),
            static_cast<int>(g.present(level, index))};
  };
  reduce_spans<T, V, kLong, /*kMean=*/true>(grid.packs, rows, kAlone, tokens.row_stride, span_of,
                                            gathered.at(block.batch, column.head, first_row),
                                            gathered.row_stride);
}

/// A row of threads takes the p tokens of one level-1 window after the other: what their ancestors
/// add is the same. A block first looks up where the rows of its windows are.
template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, 4)
    gather_backward_kernel(const __grid_constant__ GatherBackward<T> args, const RowGrid grid) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const Column column(args.shape, block.column);
  const int levels = static_cast<int>(g.levels);
  const int64_t first_window = static_cast<int64_t>(block.chunk) * grid.rows;
  const int nodes =
      static_cast<int>(min(int64_t{grid.rows}, ceil_div(g.tokens, g.pooling) - first_window));
  const Slot* slots =
      args.slots + (block.batch * args.shape.groups + column.group) * g.coarse_entries();

  const LevelRows<Acc, true> rows(levels);
  for (int i = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); i < levels * kNodes;
       i += static_cast<int>(blockDim.x * blockDim.y)) {
    const int level = i / kNodes, node = i % kNodes;
    if (node >= nodes) continue;
    const int64_t window = first_window + node;
    if (level == 0) {
      rows.row(0, node) = static_cast<int>(first_child(g, slots, window));
      continue;
    }
    const int64_t index = window / g.window[level - 1];
    rows.row(level, node) = static_cast<int>(row_of(g, slots, level, index));
    rows.scale(level, node) = Acc{1} / static_cast<Acc>(g.present(level, index));
  }
  __syncthreads();

  const auto& gathered =
      column.choose(args.grad_gathered_q, args.grad_gathered_k, args.grad_gathered_v);
  const auto& grad = column.choose(args.grad_q, args.grad_k, args.grad_v);
  for (unsigned pack = threadIdx.x; pack < grid.packs; pack += blockDim.x) {
    const T* from = gathered.at(block.batch, column.head, 0) + pack * V;
    for (int node = static_cast<int>(threadIdx.y); node < nodes;
         node += static_cast<int>(blockDim.y)) {
      const int64_t first = (first_window + node) * g.pooling;
      const int present = static_cast<int>(min(g.pooling, g.tokens - first));
      const Sums<T, V> above = rows.template sum<T, V>(node, from, gathered.row_stride);
      const int children = rows.row(0, node);
      T* to = grad.at(block.batch, column.head, first) + pack * V;
      if (children < 0) {
        const auto same = Pack<T, V>::of(above.at);
        for (int c = 0; c < present; ++c, to += grad.row_stride) same.store(to);
        continue;
      }
      const T* child = from + children * gathered.row_stride;
      constexpr int kAtOnce = 4;
      for (int c0 = 0; c0 < present; c0 += kAtOnce) {
        Pack<T, V> packs[kAtOnce];
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c, child += gathered.row_stride) {
          if (c0 + c < present) packs[c] = Pack<T, V>::load(child);
        }
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c, to += grad.row_stride) {
          if (c0 + c >= present) break;
          Sums<T, V> sums = above;
          sums.add(packs[c]);
          sums.store(to);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void gather(const Gather<T>& args, Stream stream) {
  if (args.shape.batch == 0) return;
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  const int64_t columns = shape.heads + 2 * shape.groups;
  const Rows<const T> roots{args.roots, 0, 0, 0};
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, columns, g.rows, shape.dim / V, kRows);
        with_long_spans(g.levels > 2 && g.window[g.root_level() - 1] > kAlone, [&]<bool kLong>() {
          gather_kernel<T, V, kLong><<<grid.blocks, grid.threads, 0, stream>>>(args, grid);
        });
      },
      args.q, args.k, args.v, roots, args.gathered_q, args.gathered_k, args.gathered_v);
  check_launch("gather");
}

template <class T>
void gather_backward(const GatherBackward<T>& args, Stream stream) {
  if (args.shape.batch == 0) return;
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, shape.heads + 2 * shape.groups,
                           ceil_div(g.tokens, g.pooling), shape.dim / V, nodes_of_block(g));
        gather_backward_kernel<T, V>
            <<<grid.blocks, grid.threads, LevelRows<accumulator_t<T>, true>::bytes(g), stream>>>(
                args, grid);
      },
      args.grad_gathered_q, args.grad_gathered_k, args.grad_gathered_v, args.grad_q, args.grad_k,
      args.grad_v);
  check_launch("gather_backward");
}

#define INSTANTIATE(T)                            \
  template void gather(const Gather<T>&, Stream); \
  template void gather_backward(const GatherBackward<T>&, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
