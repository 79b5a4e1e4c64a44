#include "lighthouse/kernels/merge.h"

#include <algorithm>

#include "lighthouse/kernels/cuda/rows.cuh"
#include "lighthouse/kernels/merge_weights.h"

/// Merge reads the near row of each position once and writes the position's row once; what is heard
/// of the gathered rows comes from the cache, since these are few. Windows of positions are shifted
/// by one, as for scatter (L = 3, p = 2; the pieces are cut at 3 and 7):
///
///     j + 1       0   1   2   3   4   5   6   7   8
///     j               0   1   2   3   4   5   6   7
///     piece           | first   | whole 0       | last
///     level 2   |      none     |       0       |  1 ..   each position hears the entries that
///     level 1   | none  |   0   |   1   |   2   |  3 ..   are in the sequence
///     level 0     -   0   1   2   3   4   5   6   7
///
/// A block first weighs its positions, a thread each: the positions of a node (a level-1 window of
/// j + 1) hear the same coarse rows, so each of them takes three weights, of its near row, of the
/// node's coarse rows together, and of its token's own row. Then its threads move rows, four
/// positions at once.
///
/// The adjoint goes by gathered rows: row r of an entry whose window ends at e sums over positions
/// e, e + 1 ..., as many as the window has tokens. The roots alone cover all positions, so nearly
/// all that it reads is d out and out, once.
namespace lighthouse::cuda {
namespace {

/// Positions that a block takes: at most so many, and so few that LevelRows holds their nodes.
constexpr int kPositions = 256;
int64_t positions_of_block(const Geometry& g) {
  return std::min<int64_t>(kPositions, kNodes * g.pooling);
}

/// What a position takes: three weights, 0 for what is not to be read, and where to find it.
template <class T>
struct alignas(16) Position {
  accumulator_t<T> near;
  accumulator_t<T> coarse;
  accumulator_t<T> token_weight;
  int token_row;
  int node;           ///< of the block
  int token;          ///< the position's
  const T* near_row;  ///< null where the position has no token
};

/// Weighs the positions of a block and stores their log-sum-exps. The first position of each node
/// writes what the node hears to `rows`, scaled by its mass relative to the largest. Where a
/// document begins behind it, the node's other positions hear nothing above level 0, and take no
/// weight of these.
/// @param first the block's first position: -1 in the first block
template <class T>
__device__ void weigh(const Merge<T>& args, int64_t b, int64_t h, int64_t first, int count,
                      const LevelRows<accumulator_t<T>, true>& rows, Position<T>* positions) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const Slot* slots =
      args.slots + (b * args.shape.groups + args.shape.group(h)) * g.coarse_entries();
  const auto lse_of = [&](int64_t row) { return *args.gathered_lse.at(b, h, row); };
  const auto pooling = static_cast<unsigned>(g.pooling);
  const unsigned first_node = static_cast<unsigned>(first + 1) / pooling;
  const int root_level = static_cast<int>(g.root_level());

  for (int i = thread_of_block(); i < count; i += threads_of_block()) {
    const int64_t u = first + i;
    const Place place = u < 0 ? Place{-1, 0} : args.documents.place(g, b, u);
    const auto shifted = static_cast<unsigned>(u + 1);
    const int node = static_cast<int>(shifted / pooling - first_node);
    CoarseMass<Acc> mass;
    for (int level = root_level; level > 0; --level) {
      const int64_t row = heard_row(g, slots, level, u, place.document);
      if (row >= 0) mass.add(lse_of(row));
    }
    if (i == 0 || shifted % pooling == 0) {
      for (int level = root_level; level > 0; --level) {
        const int64_t row = heard_row(g, slots, level, u, place.document);
        const bool counts = row >= 0 && has_mass(lse_of(row));
        const Acc weight = counts ? relative_mass(lse_of(row), mass.most) : 0;
        rows.row(level, node) = weight != 0 ? static_cast<int>(row) : -1;
        rows.scale(level, node) = weight;
      }
    }
    const int64_t j = place.token;
    if (j < 0) {
      positions[i] = {};
      continue;
    }
    const int64_t token_row = heard_row(g, slots, 0, u);
    const MergeWeights<Acc> weights =
        merge_weights(*args.near_lse.at(args.pieces, b, h, j), mass, token_row >= 0,
                      token_row >= 0 ? lse_of(token_row) : Acc{});
    args.lse[args.pieces.lse_index(args.shape.heads, b, h, j)] = weights.lse;
    // A NaN makes all weights NaN, that of a row which is not there too.
    const Acc of_token = token_row >= 0 ? weights.token : 0;
    positions[i] = {weights.near,
                    weights.coarse,
                    of_token,
                    static_cast<int>(token_row),
                    node,
                    static_cast<int>(j),
                    args.near_out.at(args.pieces, b, h, j)};
  }
}

constexpr int kAtOnce = 4;

/// Writes one pack of the rows of up to kAtOnce positions. Near's rows may be replaced in place:
/// the thread that writes a pack has read it before.
/// @param gathered, out the pack in row 0 of the gathered rows, and of the output
template <class T, int V>
__device__ void merge_pack(unsigned pack, int count, const Position<T>* positions,
                           const LevelRows<accumulator_t<T>, true>& rows, const T* gathered,
                           int64_t gathered_stride, T* out, int64_t out_stride) {
  Pack<T, V> near[kAtOnce];
  Pack<T, V> token[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    if (i >= count) break;
    const Position<T>& position = positions[i];
    if (position.near != 0) near[i] = Pack<T, V>::load(position.near_row + pack * V);
    if (position.token_weight != 0) {
      token[i] = Pack<T, V>::load(gathered + position.token_row * gathered_stride);
    }
  }
  Sums<T, V> coarse;
  int node = -1;  // whose rows `coarse` sums
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    if (i >= count) break;
    const Position<T>& position = positions[i];
    if (position.near_row == nullptr) continue;
    if (position.coarse != 0 && position.node != node) {
      node = position.node;
      coarse = rows.template sum<T, V>(node, gathered, gathered_stride);
    }
    Sums<T, V> sums;
    if (position.near != 0) sums.add_scaled(near[i], position.near);
    if (position.coarse != 0) sums.add_scaled(coarse, position.coarse);
    if (position.token_weight != 0) sums.add_scaled(token[i], position.token_weight);
    sums.store(out + position.token * out_stride);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, 3)
    merge_kernel(const __grid_constant__ Merge<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const int64_t h = block.column;
  const int64_t first = static_cast<int64_t>(block.chunk) * grid.rows - 1;
  const int count = static_cast<int>(min(int64_t{grid.rows}, args.documents.positions(g) - first));

  const LevelRows<accumulator_t<T>, true> rows(static_cast<int>(g.levels));
  __shared__ Position<T> positions[kPositions];
  weigh(args, block.batch, h, first, count, rows, positions);
  __syncthreads();

  for (unsigned pack = threadIdx.x; pack < grid.packs; pack += blockDim.x) {
    const T* gathered = args.gathered_out.at(block.batch, h, 0) + pack * V;
    for (int i = static_cast<int>(threadIdx.y) * kAtOnce; i < count;
         i += static_cast<int>(blockDim.y) * kAtOnce) {
      merge_pack<T, V>(pack, count - i, positions + i, rows, gathered, args.gathered_out.row_stride,
                       args.out.at(block.batch, h, 0) + pack * V, args.out.row_stride);
    }
  }
}

/// Rows that hear more positions than this are summed by a whole block: the weights of so many are
/// kept for each of a block's rows.
constexpr int kLongestPerThread = 16;

/// The rows of a block.
template <class T>
struct RowTable {
  int64_t first[kRows];  ///< the first token that hears the row
  int count[kRows];      ///< how many do
  int position[kRows];   ///< where the first token stands
  int document[kRows];   ///< the first position of its document
  accumulator_t<T> weights[kRows][kLongestPerThread];
  double factor[kRows];  ///< what the row's gradient is multiplied by to give backward_out
};

/// A block of merge_backward_kernel: where it stands and what it reads.
template <class T, int V>
class RowsBackward {
 public:
  using Acc = accumulator_t<T>;

  __device__ RowsBackward(const MergeBackward<T>& args, const RowGrid& grid, RowTable<T>& table)
      : args_(args),
        g_(args.geometry),
        table_(table),
        packs_(grid.packs),
        block_(grid),
        h_(block_.column),
        group_(block_.batch * args.shape.groups + args.shape.group(h_)),
        first_row_(static_cast<int64_t>(block_.chunk) * kRows),
        rows_(static_cast<int>(min(int64_t{kRows}, g_.rows - first_row_))) {}

  /// Fills the table but for the factors, by all threads together.
  __device__ void look_up() const {
    for (int row = thread_of_block(); row < rows_; row += threads_of_block()) {
      const int64_t id = args_.rows[group_ * g_.rows + first_row_ + row];
      const int64_t level = g_.level(id);
      const int64_t position = g_.first_hearer(level, id - g_.first[level]);
      const TokenRange tokens = args_.documents.range(g_, block_.batch, position, g_.window[level]);
      table_.first[row] = tokens.first;
      table_.count[row] = static_cast<int>(tokens.count);
      table_.position[row] = static_cast<int>(position);
      table_.document[row] =
          static_cast<int>(args_.documents.place(g_, block_.batch, position).document);
    }
    __syncthreads();
    for (int i = thread_of_block(); i < rows_ * kLongestPerThread; i += threads_of_block()) {
      const int row = i / kLongestPerThread, place = i % kLongestPerThread;
      if (place < table_.count[row] && table_.count[row] <= kLongestPerThread) {
        table_.weights[row][place] = weight(row, place);
      }
    }
    __syncthreads();
  }

  /// Rows that few positions hear: each by a row of threads, a *team*, which is part of a warp.
  __device__ void sum_short() const {
    for (int first = 0; first < rows_; first += static_cast<int>(blockDim.y)) {
      const int row = first + static_cast<int>(threadIdx.y);
      const bool is_mine = row < rows_ && table_.count[row] <= kLongestPerThread;
      double dot = 0, square = 0;
      for (unsigned pack = threadIdx.x; is_mine && pack < packs_; pack += blockDim.x) {
        Sums<T, V> sums;
        Acc dot_of_pack = 0;
        add_positions(row, 0, table_.count[row], table_.weights[row], pack, sums, dot_of_pack);
        square += store_and_square(row, pack, sums);
        dot += dot_of_pack;
      }
      // All threads of the warp take part, whether they have a row or not.
      dot = sum_over_team(dot);
      square = sum_over_team(square);
      if (is_mine && threadIdx.x == 0) table_.factor[row] = backward_factor(dot, square);
    }
  }

  /// Rows that many positions hear: each by all teams, which divide its positions. Their partial
  /// sums are added in the order of positions.
  __device__ void sum_long() const {
    __shared__ Acc weights[kBlockThreads];
    __shared__ Acc partial[kBlockThreads][V + 1];
    const int thread = thread_of_block(), threads = threads_of_block();
    const int y = static_cast<int>(threadIdx.y), teams = static_cast<int>(blockDim.y);
    for (int row = 0; row < rows_; ++row) {
      const int count = table_.count[row];
      if (count <= kLongestPerThread) continue;
      double dot = 0, square = 0;
      for (unsigned base = 0; base < packs_; base += blockDim.x) {
        const unsigned pack = base + threadIdx.x;
        Sums<T, V> sums;
        Acc dot_of_pack = 0;
        for (int chunk = 0; chunk < count; chunk += threads) {
          const int here = min(threads, count - chunk);
          __syncthreads();
          if (thread < here) weights[thread] = weight(row, chunk + thread);
          __syncthreads();
          const int begin = here * y / teams, end = here * (y + 1) / teams;
          if (pack < packs_) {
            add_positions(row, chunk + begin, end - begin, weights + begin, pack, sums,
                          dot_of_pack);
          }
        }
#pragma unroll
        for (int i = 0; i < V; ++i) partial[thread][i] = sums.at[i];
        partial[thread][V] = dot_of_pack;
        __syncthreads();
        if (y > 0 || pack >= packs_) continue;
        for (int other = 1; other < teams; ++other) {
          const Acc* const of_other = partial[thread + other * static_cast<int>(blockDim.x)];
#pragma unroll
          for (int i = 0; i < V; ++i) sums.at[i] += of_other[i];
          dot_of_pack += of_other[V];
        }
        square += store_and_square(row, pack, sums);
        dot += dot_of_pack;
      }
      dot = sum_over_team(dot);
      square = sum_over_team(square);
      if (thread == 0) table_.factor[row] = backward_factor(dot, square);
    }
  }

  /// The gradients just stored, times their rows' factors.
  __device__ void store_backward_out() const {
    const T* grad = args_.grad_gathered_out.at(block_.batch, h_, first_row_);
    T* out = args_.backward_out.at(block_.batch, h_, first_row_);
    for (unsigned pack = threadIdx.x; pack < packs_; pack += blockDim.x) {
      for (int row = static_cast<int>(threadIdx.y); row < rows_;
           row += static_cast<int>(blockDim.y)) {
        const auto x = Pack<T, V>::load(grad + row * args_.grad_gathered_out.row_stride + pack * V);
        Sums<T, V> scaled;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          scaled.at[i] = static_cast<Acc>(bounded(x[i] * table_.factor[row], kLargest<T>));
        }
        scaled.store(out + row * args_.backward_out.row_stride + pack * V);
      }
    }
  }

 private:
  /// The weight of a row of the block at a position that hears it.
  __device__ Acc weight(int row, int place) const {
    const Slot* slots = args_.slots + group_ * g_.coarse_entries();
    const int64_t j = table_.first[row] + place;
    return row_weight(*args_.gathered_lse.at(block_.batch, h_, first_row_ + row),
                      args_.lse[args_.pieces.lse_index(args_.shape.heads, block_.batch, h_, j)],
                      heard_rows(g_, slots, table_.position[row] + place, table_.document[row]));
  }

  /// Adds what `count` of a row's positions give from place `begin` on. Several loads are under way
  /// at once; a position of weight 0 is not read.
  __device__ void add_positions(int row, int begin, int count, const Acc* weights, unsigned pack,
                                Sums<T, V>& sums, Acc& dot) const {
    const int64_t first = table_.first[row] + begin;
    const T* grad = args_.grad_out.at(block_.batch, h_, first) + pack * V;
    const T* out = args_.out.at(block_.batch, h_, first) + pack * V;
    for (int j0 = 0; j0 < count; j0 += kAtOnce) {
      Pack<T, V> grads[kAtOnce];
      Pack<T, V> outs[kAtOnce];
      Acc weight[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        weight[i] = j0 + i < count ? weights[j0 + i] : 0;
        if (weight[i] == 0) continue;
        grads[i] = Pack<T, V>::load(grad + (j0 + i) * args_.grad_out.row_stride);
        outs[i] = Pack<T, V>::load(out + (j0 + i) * args_.out.row_stride);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (weight[i] == 0) continue;
        Acc product = 0;
#pragma unroll
        for (int d = 0; d < V; ++d) product += grads[i][d] * outs[i][d];
        sums.add_scaled(grads[i], weight[i]);
        dot += product * weight[i];
      }
    }
  }

  /// Stores a pack of a row's gradient; returns the sum of the squares of what is stored.
  __device__ double store_and_square(int row, unsigned pack, const Sums<T, V>& sums) const {
    const auto stored = Pack<T, V>::of(sums.at);
    stored.store(args_.grad_gathered_out.at(block_.batch, h_, first_row_ + row) + pack * V);
    double square = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      square += static_cast<double>(stored[i]) * static_cast<double>(stored[i]);
    }
    return square;
  }

  __device__ static double sum_over_team(double x) {
    for (unsigned offset = blockDim.x / 2; offset > 0; offset /= 2) {
      x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    return x;
  }

  const MergeBackward<T>& args_;
  const Geometry& g_;
  RowTable<T>& table_;
  const unsigned packs_;
  const RowBlock block_;
  const int64_t h_, group_;  // of the query heads; of all key/value heads
  const int64_t first_row_;
  const int rows_;
};

template <class T, int V, bool kLong>
__global__ void __launch_bounds__(kBlockThreads, 3)
    merge_backward_kernel(const __grid_constant__ MergeBackward<T> args, const RowGrid grid) {
  __shared__ RowTable<T> table;
  const RowsBackward<T, V> block(args, grid, table);
  block.look_up();
  block.sum_short();
  if constexpr (kLong) block.sum_long();
  __syncthreads();
  block.store_backward_out();
}

}  // namespace

template <class T>
void merge(const Merge<T>& args, Stream stream) {
  const StageRange range("merge");
  const Shape& shape = args.shape;
  if (shape.batch == 0) return;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        // One more: the positions are those of j + 1.
        const RowGrid grid(shape.batch, shape.heads, args.documents.positions(args.geometry) + 1,
                           shape.dim / V, positions_of_block(args.geometry));
        merge_kernel<T, V>
            <<<grid.blocks, grid.threads, LevelRows<accumulator_t<T>, true>::bytes(args.geometry),
               stream>>>(args, grid);
      },
      args.near_out, args.gathered_out, args.out);
  check_launch("merge");
}

template <class T>
void merge_backward(const MergeBackward<T>& args, Stream stream) {
  const StageRange range("merge_backward");
  const Shape& shape = args.shape;
  if (shape.batch == 0) return;
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        RowGrid grid(shape.batch, shape.heads, args.geometry.rows, shape.dim / V, kRows);
        // Teams are parts of a warp, whose threads add up by shuffles.
        grid.threads.x = grid.packs <= 8 ? 8 : grid.packs <= 16 ? 16 : 32;
        grid.threads.y = kBlockThreads / grid.threads.x;
        with_long_spans(args.geometry.root_window() > kLongestPerThread, [&]<bool kLong>() {
          merge_backward_kernel<T, V, kLong><<<grid.blocks, grid.threads, 0, stream>>>(args, grid);
        });
      },
      args.grad_out, args.out, args.grad_gathered_out, args.backward_out);
  check_launch("merge_backward");
}

#define INSTANTIATE(T)                          \
  template void merge(const Merge<T>&, Stream); \
  template void merge_backward(const MergeBackward<T>&, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
