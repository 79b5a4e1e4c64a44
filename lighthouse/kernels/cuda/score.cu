#include "lighthouse/kernels/score.h"

#include <limits>

#include "lighthouse/kernels/cuda/rows.cuh"

/// Score reads q, k and v once. A *team*, 8 to 32 neighbouring threads of a warp, walks the tokens
/// of one window of one head, each thread its pack of the row: it keeps the sum, adds the squares
/// up over the team for the tokens' norms, and pools these to the scores of all levels inside the
/// window (L = 3, p = 2; a window of the level `top` = 2):
///
///     tokens, 8 at once     t0      t1      t2      t3
///     norms                 |q0|    |q1|    |q2|    |q3|       in shared memory
///     level 1               max(t0, t1)     max(t2, t3)        entries 2 w, 2 w + 1
///     level 2 = top         max of both                        entry w
///
/// `top` is the root level where a root has up to kTeamTokens tokens; then the sum over its tokens
/// is the root's mean. Else the teams write their sums, and kernels that read no tokens form what
/// is above: roots_kernel the means, pool_level_kernel the scores, a level each.
///
/// A team walks the query heads of a group one after the other, since their scores are pooled.
namespace lighthouse::cuda {
namespace {

/// Where rows are not scored by teams, means of longer windows are formed by whole blocks.
constexpr int kLongestPerThread = 64;
constexpr float kNone = -std::numeric_limits<float>::infinity();

/// A team of threads of one warp walks the windows of the highest level that has at most this many
/// tokens; what lies above is formed from its results.
constexpr int kTeamTokens = 64;
constexpr int kTokensAtOnce = 8;

int team_level(const Geometry& g) {
  int level = 1;
  while (level < g.root_level() && g.window[level + 1] <= kTeamTokens) ++level;
  return level;
}

struct TeamGrid {
  int top;           ///< the level of the windows that teams walk
  unsigned windows;  ///< of that level
  unsigned chunks;   ///< of windows, a block each
  unsigned lanes;    ///< of a team: 8, 16 or 32
  unsigned packs;    ///< of a row, at most one a lane
};

/// What each of the lanes of a team has of kTokensAtOnce sums, added up over the lanes: lane i has
/// the sum of token i / (lanes / 8) then. Each step halves the sums that a lane is left with.
template <class Acc>
__device__ Acc sum_over_team(Acc (&sums)[kTokensAtOnce], unsigned lane, unsigned lanes) {
  static_assert(kTokensAtOnce == 8);
  unsigned offset = lanes / 2;
#pragma unroll
  for (int half = 4; half > 0; half /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int t = 0; t < half; ++t) {
      const Acc sent = upper ? sums[t] : sums[t + half];
      const Acc kept = upper ? sums[t + half] : sums[t];
      sums[t] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
    }
  }
  for (; offset > 0; offset /= 2) sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], offset);
  return sums[0];
}

/// Where a thread stands: in a team, which has one window of one of q, k and v and of one key/value
/// head. Neighbouring blocks take neighbouring heads, which are neighbours in memory where a
/// model's projections wrote them.
struct TeamPlace {
  Column::Kind of;
  int64_t batch;
  int64_t group;
  unsigned window;
  unsigned team;  ///< of the block
  unsigned lane;  ///< of the team

  __device__ TeamPlace(const TeamGrid& grid, unsigned groups) {
    const unsigned column = blockIdx.x % (3 * groups);
    const unsigned rest = blockIdx.x / (3 * groups);
    of = static_cast<Column::Kind>(column / groups);
    group = column % groups;
    batch = rest / grid.chunks;
    team = threadIdx.x / grid.lanes;
    lane = threadIdx.x % grid.lanes;
    window = rest % grid.chunks * (kBlockThreads / grid.lanes) + team;
  }
};

/// The sum of the tokens of a team's window, of one head. Unless they are v's, their norms too,
/// each or the higher one that is there already, from a head before.
/// @param present how many tokens the window has
/// @param row the first token's, at the pack of this thread
/// @param norms of the window's tokens
template <class T, int V>
__device__ Sums<T, V> walk_window(const TeamGrid& grid, const TeamPlace& at, int count, int present,
                                  const T* row, int64_t stride, bool is_first_head, float* norms) {
  using Acc = accumulator_t<T>;
  const bool has_pack = at.lane < grid.packs;
  Sums<T, V> sums;
  for (int t0 = 0; t0 < count; t0 += kTokensAtOnce, row += kTokensAtOnce * stride) {
    const int here = has_pack ? present - t0 : 0;
    Pack<T, V> packs[kTokensAtOnce];
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      packs[t] = Pack<T, V>::zero();
      if (t < here) packs[t] = Pack<T, V>::load(row + t * stride);
    }
    if (at.of == Column::kV) {
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) sums.add(packs[t]);
      continue;
    }
    Acc squares[kTokensAtOnce];
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      squares[t] = 0;
#pragma unroll
      for (int d = 0; d < V; ++d) {
        const Acc x = packs[t][d];
        sums.at[d] += x;
        squares[t] += x * x;
      }
    }
    const Acc square = sum_over_team(squares, at.lane, grid.lanes);
    const int t = t0 + static_cast<int>(at.lane / (grid.lanes / kTokensAtOnce));
    if (at.lane % (grid.lanes / kTokensAtOnce) == 0 && t < count) {
      const float norm = t < present ? static_cast<float>(sqrt(square)) : kNone;
      norms[t] = is_first_head ? norm : fmaxf(norms[t], norm);
    }
  }
  return sums;
}

/// The scores of a team's window: maxima of `count` norms, level by level up to `top`. Each level
/// is written behind the one below it, at most half as long.
/// @param scores of the batch and key/value head; null for a team past the end
__device__ void pool_window(const Geometry& g, const TeamGrid& grid, const TeamPlace& at, int count,
                            float* norms, float* scores) {
  float* below = norms;
  int entries_below = count;
  for (int level = 1; level <= grid.top; ++level) {
    __syncwarp();
    const int entries = static_cast<int>(g.window[grid.top - level]);
    float* const here = below + entries_below;
    for (int e = static_cast<int>(at.lane); e < entries; e += static_cast<int>(grid.lanes)) {
      float best = kNone;
      for (int c = 0; c < g.pooling; ++c) best = fmaxf(best, below[e * g.pooling + c]);
      here[e] = best;
      if (scores != nullptr) {
        scores[g.coarse(level, static_cast<int64_t>(at.window) * entries + e)] = best;
      }
    }
    below = here;
    entries_below = entries;
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, 3)
    score_kernel(const __grid_constant__ Score<T> args, accumulator_t<T>* partial_sums,
                 const TeamGrid grid) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  const TeamPlace at(grid, static_cast<unsigned>(shape.groups));
  const Rows<const T>& tokens = at.of == Column::kQ   ? args.q
                                : at.of == Column::kK ? args.k
                                                      : args.v;
  const bool exists = at.window < grid.windows;  // a team past the end still takes part in shuffles
  const int count = static_cast<int>(g.window[grid.top]);
  const TokenRange window =
      exists ? args.documents.range(g, at.batch, static_cast<int64_t>(at.window) * count, count)
             : TokenRange{0, 0};
  const int present = static_cast<int>(window.count);

  __shared__ float pyramids[kBlockThreads / 8][2 * kTeamTokens];
  float* const norms = pyramids[at.team];

  const int64_t heads = at.of == Column::kQ ? shape.heads_per_group() : 1;
  for (int64_t i = 0; i < heads; ++i) {
    const int64_t head = at.group * heads + i;
    const T* row = tokens.at(at.batch, head, window.first) + at.lane * V;
    Sums<T, V> sums =
        walk_window<T, V>(grid, at, count, present, row, tokens.row_stride, i == 0, norms);
    if (!exists || at.lane >= grid.packs) continue;
    const int64_t column =
        (at.of == Column::kQ ? 0 : shape.heads + (at.of - Column::kK) * shape.groups) + head;
    const int64_t place =
        ((at.batch * grid.windows + at.window) * shape.columns() + column) * shape.dim +
        at.lane * V;
    if (grid.top == g.root_level()) {
      sums.scale(Acc{1} / static_cast<Acc>(max(present, 1)));
      sums.store(args.roots + place);
    } else {
#pragma unroll
      for (int d = 0; d < V; ++d) partial_sums[place + d] = sums.at[d];
    }
  }
  if (at.of == Column::kV) return;
  float* const scores = (at.of == Column::kQ ? args.scores_q : args.scores_k) +
                        (at.batch * shape.groups + at.group) * g.coarse_entries();
  pool_window(g, grid, at, count, norms, exists ? scores : nullptr);
}

/// The norms of the rows of q and k, a warp each: (B, H, N), then (B, G, N).
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    norms_kernel(const __grid_constant__ Score<T> args, float* norms) {
  using Acc = accumulator_t<T>;
  const int64_t n = args.geometry.tokens;
  const int64_t of_q = args.shape.batch * args.shape.heads * n;
  const int64_t of_k = args.shape.batch * args.shape.groups * n;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlockThreads / 32) + threadIdx.x / 32;
  if (row >= of_q + of_k) return;
  const bool is_q = row < of_q;
  const int64_t heads = is_q ? args.shape.heads : args.shape.groups;
  const int64_t of_its = is_q ? row : row - of_q;
  const T* x = (is_q ? args.q : args.k).at(of_its / n / heads, of_its / n % heads, of_its % n);
  Acc square = 0;
  for (int64_t d = threadIdx.x % 32; d < args.shape.dim; d += 32) {
    const Acc element = widen(x[d]);
    square += element * element;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    square += __shfl_xor_sync(0xffffffffu, square, offset);
  }
  if (threadIdx.x % 32 == 0) norms[row] = static_cast<float>(sqrt(square));
}

/// The means of the root windows from their tokens.
template <class T, int V, bool kLong>
__global__ void __launch_bounds__(kBlockThreads, 4)
    means_kernel(const __grid_constant__ Score<T> args, const RowGrid grid) {
  const Geometry& g = args.geometry;
  const RowBlock block(grid);
  const Column column(args.shape, block.column);
  const Rows<const T>& tokens = column.choose(args.q, args.k, args.v);
  const int64_t first_root = static_cast<int64_t>(block.chunk) * kRows;
  const int rows = static_cast<int>(min(int64_t{kRows}, g.roots - first_root));
  const auto span_of = [&](int row) -> Span<T> {
    const TokenRange window =
        args.documents.range(g, block.batch, (first_root + row) * g.root_window(), g.root_window());
    return {tokens.at(block.batch, column.head, window.first), static_cast<int>(window.count)};
  };
  const int64_t first = (block.batch * g.roots + first_root) * grid.columns + block.column;
  reduce_spans<T, V, kLong, /*kMean=*/true>(grid.packs, rows, kLongestPerThread, tokens.row_stride,
                                            span_of, args.roots + first * args.shape.dim,
                                            grid.columns * args.shape.dim);
}

/// The means of the root windows from the sums over the windows that teams walked.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    roots_kernel(const __grid_constant__ Score<T> args, const accumulator_t<T>* partial_sums,
                 int top) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const int64_t root_size = args.shape.columns() * args.shape.dim;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= args.shape.batch * g.roots * root_size) return;
  const int64_t root = i / root_size;
  const int64_t windows = g.window[g.root_level() - top];
  const Acc* of_root = partial_sums + root * windows * root_size + i % root_size;
  auto sums = Sums<Acc, 1>::of_rows(of_root, root_size, static_cast<int>(windows));
  const int64_t present =
      args.documents.range(g, root / g.roots, root % g.roots * g.root_window(), g.root_window())
          .count;
  sums.scale(Acc{1} / static_cast<Acc>(max(present, int64_t{1})));
  narrow(sums.at[0], args.roots[i]);
}

/// The scores of one level from those of the level below, for both scores.
__global__ void __launch_bounds__(kBlockThreads)
    pool_level_kernel(const __grid_constant__ Geometry g, int64_t heads, int level, float* scores_q,
                      float* scores_k) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= heads * g.entries(level)) return;
  const int64_t head = i / g.entries(level);
  const int64_t index = i % g.entries(level);
  for (float* all : {scores_q, scores_k}) {
    float* scores = all + head * g.coarse_entries();
    float best = kNone;
    for (int64_t c = 0; c < g.pooling; ++c) {
      best = fmaxf(best, scores[g.coarse(level - 1, index * g.pooling + c)]);
    }
    scores[g.coarse(level, index)] = best;
  }
}

void pool_levels(const Geometry& g, const Shape& shape, int above, float* scores_q, float* scores_k,
                 Stream stream) {
  const int64_t heads = shape.batch * shape.groups;
  for (int level = above + 1; level < g.levels; ++level) {
    const unsigned blocks = grid_of(ceil_div(heads * g.entries(level), kBlockThreads));
    pool_level_kernel<<<blocks, kBlockThreads, 0, stream>>>(g, heads, level, scores_q, scores_k);
    check_launch("pool_level");
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    pool_tokens_kernel(const __grid_constant__ PoolScores args) {
  const Geometry& g = args.geometry;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= args.shape.batch * args.shape.groups * g.entries(1)) return;
  const int64_t head = i / g.entries(1);  // b G + g
  const int64_t index = i % g.entries(1);
  const TokenRange window =
      args.documents.range(g, head / args.shape.groups, index * g.pooling, g.pooling);
  const auto pool = [&](const float* tokens, int64_t heads) {
    float best = kNone;
    for (int64_t h = head * heads; h < (head + 1) * heads; ++h) {
      for (int64_t t = 0; t < window.count; ++t) {
        best = fmaxf(best, tokens[h * g.tokens + window.first + t]);
      }
    }
    return best;
  };
  const int64_t at = head * g.coarse_entries() + g.coarse(1, index);
  args.scores_q[at] = pool(args.tokens_q, args.shape.heads_per_group());
  args.scores_k[at] = pool(args.tokens_k, 1);
}

/// Whether a team can take a window: each of its lanes one pack of a row.
template <class T>
bool teams_fit(const Score<T>& args) {
  bool fits = false;
  with_pack<T>(
      args.shape.dim,
      [&]<int V>() {
        fits = V > 1 && args.shape.dim / V <= 32 && args.geometry.pooling <= kTeamTokens;
      },
      args.q, args.k, args.v, Rows<T>{args.roots});
  return fits;
}

template <class T>
void score_by_teams(const Score<T>& args, accumulator_t<T>* partial_sums, Stream stream) {
  constexpr int kPack = 16 / sizeof(T);
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  TeamGrid grid{};
  grid.top = team_level(g);
  grid.windows = static_cast<unsigned>(g.entries(grid.top));
  grid.packs = static_cast<unsigned>(shape.dim / kPack);
  grid.lanes = grid.packs <= 8 ? 8 : grid.packs <= 16 ? 16 : 32;
  grid.chunks = static_cast<unsigned>(ceil_div(grid.windows, kBlockThreads / grid.lanes));
  score_kernel<T, kPack>
      <<<grid_of(shape.batch * 3 * shape.groups * grid.chunks), kBlockThreads, 0, stream>>>(
          args, partial_sums, grid);
  check_launch("score");
  if (grid.top == g.root_level()) return;
  const int64_t elements = shape.batch * g.roots * shape.columns() * shape.dim;
  roots_kernel<T><<<grid_of(ceil_div(elements, kBlockThreads)), kBlockThreads, 0, stream>>>(
      args, partial_sums, grid.top);
  check_launch("roots");
  pool_levels(g, shape, grid.top, args.scores_q, args.scores_k, stream);
}

/// In two passes, for rows that are too long for a team or not aligned.
template <class T>
void score_by_rows(const Score<T>& args, float* norms, Stream stream) {
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  const int64_t of_q = shape.batch * shape.heads * g.tokens;
  const int64_t of_k = shape.batch * shape.groups * g.tokens;
  norms_kernel<T><<<grid_of(ceil_div(of_q + of_k, kBlockThreads / 32)), kBlockThreads, 0, stream>>>(
      args, norms);
  check_launch("norms");
  pool_scores({g, shape, norms, norms + of_q, args.scores_q, args.scores_k, args.documents},
              stream);
  with_pack<T>(
      shape.dim,
      [&]<int V>() {
        const RowGrid grid(shape.batch, shape.columns(), g.roots, shape.dim / V, kRows);
        with_long_spans(g.root_window() > kLongestPerThread, [&]<bool kLong>() {
          means_kernel<T, V, kLong><<<grid.blocks, grid.threads, 0, stream>>>(args, grid);
        });
      },
      args.q, args.k, args.v, Rows<T>{args.roots});
  check_launch("means");
}

}  // namespace

template <class T>
int64_t score_workspace_bytes(const Score<T>& args) {
  const Geometry& g = args.geometry;
  const Shape& shape = args.shape;
  if (!teams_fit(args)) {
    return shape.batch * (shape.heads + shape.groups) * g.tokens *
           static_cast<int64_t>(sizeof(float));
  }
  if (team_level(g) == g.root_level()) return 0;
  return shape.batch * g.entries(team_level(g)) * shape.columns() * shape.dim *
         static_cast<int64_t>(sizeof(accumulator_t<T>));
}

template <class T>
void score(const Score<T>& args, void* workspace, Stream stream) {
  const StageRange range("score");
  if (args.shape.batch == 0) return;
  if (teams_fit(args)) {
    score_by_teams(args, static_cast<accumulator_t<T>*>(workspace), stream);
  } else {
    score_by_rows(args, static_cast<float*>(workspace), stream);
  }
}

void pool_scores(const PoolScores& args, Stream stream) {
  const StageRange range("pool_scores");
  const Geometry& g = args.geometry;
  if (args.shape.batch == 0 || g.levels == 1) return;
  const int64_t entries = args.shape.batch * args.shape.groups * g.entries(1);
  pool_tokens_kernel<<<grid_of(ceil_div(entries, kBlockThreads)), kBlockThreads, 0, stream>>>(args);
  check_launch("pool_tokens");
  pool_levels(g, args.shape, 1, args.scores_q, args.scores_k, stream);
}

#define INSTANTIATE(T)                                     \
  template int64_t score_workspace_bytes(const Score<T>&); \
  template void score(const Score<T>&, void*, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
