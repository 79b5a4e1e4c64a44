#include "lighthouse/kernels/select.h"

#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "lighthouse/kernels/cuda/launch.h"

/// Select gives a block one tile of one key/value head: coarse to fine, the candidates of a level
/// are the tile's roots or the children of what was refined above, and the m with the highest keys
/// are refined. Then every entry that is in knows its row by counting (L = 3, p = 2, a tile of two
/// roots, m = 1; * is refined):
///
///     level 2                  0*              1         lists: what is refined, rising
///     level 1              0       1*                      level 2: 0
///     level 0                    2   3                     level 1: 1
///
///     post-order rows      0     1   2   3   4   5       = (1,0) (0,2) (0,3) (1,1) (2,0) (2,1)
///     slots                (1,0) 0   (1,1) 3*   (2,0) 4*   (2,1) 5   all others none
///
/// The row of an entry is the number of entries that end before it, or with it and are finer: of
/// its own level its place among the candidates, of every other a binary search in the lists.
///
/// Keys are unsigned integers in the order of the scores. The lowest key that is taken is found by
/// radix, a byte at a time from the top: count how many keys have each value of the byte, then find
/// the value in which the wanted place falls.
namespace lighthouse::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kSharedBytes = 40 << 10;  // what every card has, beside the kernel's own
using BlockScan = cub::BlockScan<int, kThreads>;

/// What a tile needs room for: a key by Q and one by K for each candidate, and the refined entries
/// of each level above 0.
struct Room {
  int64_t candidates;  ///< of a level, at most
  int64_t refined;     ///< of a level, at most

  explicit Room(const Geometry& g) : candidates(0), refined(0) {
    if (g.levels == 1) return;
    refined = std::min(g.tile_budget, g.entries(1));
    candidates = std::max(ceil_div(g.roots, g.tiles), std::min(g.pooling * refined, g.entries(1)));
  }
  int64_t words(const Geometry& g) const { return 2 * candidates + (g.levels - 1) * refined; }
  int64_t bytes(const Geometry& g) const { return words(g) * static_cast<int64_t>(sizeof(int)); }
};

/// Unsigned integers in the order of the scores; NaN is -infinity, -0 is +0, and none is 0.
__device__ uint32_t key_of(float score) {
  if (isnan(score)) score = -INFINITY;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
constexpr uint32_t kFirst = 0xffffffffu;  ///< of entry 0: before every score
constexpr uint32_t kTaken = 0;            ///< after every score

/// How many keys have each value of a digit; one warp finds the value of the key sought.
struct Digits {
  int counts[256];
  int digit;
  int left;  ///< how many are still wanted of the keys that have that digit

  /// The digit of the key that is in place `want` from the top, counted from 1.
  __device__ void find(int want) {
    const int lane = static_cast<int>(threadIdx.x);
    const int highest = 255 - 8 * lane;  // of the eight values that this lane looks at
    int mine = 0;
    for (int i = 0; i < 8; ++i) mine += counts[highest - i];
    int up_to = mine;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, up_to, offset);
      if (lane >= offset) up_to += other;
    }
    int before = up_to - mine;
    if (before >= want || up_to < want) return;
    int value = highest;
    for (; before + counts[value] < want; --value) before += counts[value];
    digit = value;
    left = want - before;
  }
};

/// One tile of one key/value head.
class Tile {
 public:
  __device__ Tile(const Select& args, const Room& room, int64_t head, int64_t tile, int* space,
                  BlockScan::TempStorage& scan, Digits& digits)
      : g_(args.geometry),
        earlier_(args.rule == SelectionRule::kCausal ? 1 : 0),
        scores_q_(args.scores_q + head * g_.coarse_entries()),
        scores_k_(args.scores_k + head * g_.coarse_entries()),
        slots_(args.slots + head * g_.coarse_entries()),
        rows_(args.rows + head * g_.rows + g_.tile_row(tile)),
        first_row_(static_cast<int>(g_.tile_row(tile))),
        first_root_(static_cast<unsigned>(g_.tile_root(tile))),
        roots_(static_cast<unsigned>(g_.tile_root(tile + 1) - g_.tile_root(tile))),
        keys_q_(reinterpret_cast<uint32_t*>(space)),
        keys_k_(keys_q_ + room.candidates),
        lists_(reinterpret_cast<unsigned*>(keys_k_ + room.candidates)),
        list_size_(static_cast<unsigned>(room.refined)),
        scan_(scan),
        digits_(digits) {}

  __device__ void select() {
    clear_slots();
    for (int level = root_level(); level > 0; --level) refine(level);
    for (int level = root_level(); level >= 0; --level) order(level);
  }

 private:
  __device__ unsigned pooling() const { return static_cast<unsigned>(g_.pooling); }
  __device__ int root_level() const { return static_cast<int>(g_.root_level()); }

  /// How many entries of a level are in the sequence, and how many of them are refined.
  __device__ unsigned candidates(int level) const {
    unsigned count = roots_;
    for (int l = root_level(); l > level; --l) count = refined_of(count) * pooling();
    return count;
  }
  __device__ unsigned refined(int level) const { return refined_of(candidates(level)); }
  __device__ unsigned refined_of(unsigned count) const {
    return min(count, static_cast<unsigned>(g_.tile_budget));
  }

  /// The indices of the refined entries of a level above 0, rising.
  __device__ unsigned* list(int level) const { return lists_ + (level - 1) * list_size_; }

  /// The index of a level's candidate: of a root, or of a child of what is refined above.
  __device__ unsigned candidate(int level, unsigned i) const {
    if (level == root_level()) return first_root_ + i;
    return list(level + 1)[i / pooling()] * pooling() + i % pooling();
  }

  __device__ void clear_slots() const {
    for (int level = 1; level < root_level(); ++level) {
      const int64_t count = g_.window[root_level() - level];
      Slot* const first = slots_ + g_.coarse(level, first_root_ * count);
      for (int64_t i = threadIdx.x; i < roots_ * count; i += kThreads) first[i] = kNoSlot;
    }
  }

  /// Writes the list of a level.
  __device__ void refine(int level) {
    const unsigned count = candidates(level);
    const unsigned budget = static_cast<unsigned>(g_.tile_budget);
    if (count <= budget) {
      for (unsigned i = threadIdx.x; i < count; i += kThreads) {
        list(level)[i] = candidate(level, i);
      }
      __syncthreads();
      return;
    }
    for (unsigned i = threadIdx.x; i < count; i += kThreads) {
      const unsigned index = candidate(level, i);
      const int64_t judge = g_.coarse(level, static_cast<int64_t>(index) - earlier_);
      keys_q_[i] = index == 0 ? kFirst : key_of(scores_q_[judge]);
      keys_k_[i] = index == 0 ? kFirst : key_of(scores_k_[judge]);
    }
    __syncthreads();

    if (budget / 2 > 0) take_by_q(count, budget / 2);
    __syncthreads();
    take_by_k(level, count, budget - budget / 2);
    __syncthreads();
  }

  /// The keys that are taken: those above `lowest`, and the first `equal` of those equal to it.
  struct Threshold {
    uint32_t lowest;
    int equal;
  };

  /// The threshold that takes `want` of `count` keys, found digit by digit, from the top, by
  /// counting. All threads of the block work together, and wait for one another before they leave.
  __device__ Threshold find_threshold(const uint32_t* keys, unsigned count, unsigned want) {
    Threshold found{0, static_cast<int>(want)};
    for (int shift = 24; shift >= 0; shift -= 8) {
      if (threadIdx.x < 256) digits_.counts[threadIdx.x] = 0;
      __syncthreads();
      for (unsigned i = threadIdx.x; i < count; i += kThreads) {
        // Of the keys that agree with `lowest` in the digits above; a shift by 32 is not defined.
        if (((keys[i] ^ found.lowest) >> shift) >> 8 == 0) {
          atomicAdd(&digits_.counts[keys[i] >> shift & 255], 1);
        }
      }
      __syncthreads();
      if (threadIdx.x < 32) digits_.find(found.equal);
      __syncthreads();
      found.lowest |= static_cast<uint32_t>(digits_.digit) << shift;
      found.equal = digits_.left;
    }
    return found;
  }

  /// Whether candidate i is taken; the equal ones taken are no longer wanted. All threads of the
  /// block ask together, for neighbouring candidates, which rise from call to call and may be past
  /// the last; they wait for one another before they leave.
  __device__ bool is_taken(const uint32_t* keys, unsigned count, unsigned i, Threshold& threshold) {
    const bool equal = i < count && keys[i] == threshold.lowest;
    int before = 0, all = 0;
    BlockScan(scan_).ExclusiveSum(equal ? 1 : 0, before, all);
    __syncthreads();
    const bool taken =
        (i < count && keys[i] > threshold.lowest) || (equal && before < threshold.equal);
    threshold.equal -= all;
    return taken;
  }

  /// Marks the `want` candidates with the highest keys by Q in their keys by K.
  __device__ void take_by_q(unsigned count, unsigned want) {
    Threshold threshold = find_threshold(keys_q_, count, want);
    for (unsigned base = 0; base < count; base += kThreads) {
      const unsigned i = base + threadIdx.x;
      if (is_taken(keys_q_, count, i, threshold)) keys_k_[i] = kTaken;
    }
  }

  /// Writes the list of a level: what is marked, and the `want` others with the highest keys by K.
  __device__ void take_by_k(int level, unsigned count, unsigned want) {
    unsigned* const refined_here = list(level);
    Threshold threshold = find_threshold(keys_k_, count, want);
    int written = 0;
    for (unsigned base = 0; base < count; base += kThreads) {
      const unsigned i = base + threadIdx.x;
      const bool taken =
          is_taken(keys_k_, count, i, threshold) || (i < count && keys_k_[i] == kTaken);
      int before = 0, all = 0;
      BlockScan(scan_).ExclusiveSum(taken ? 1 : 0, before, all);
      __syncthreads();
      if (taken) refined_here[written + before] = candidate(level, i);
      written += all;
    }
  }

  /// The first place in a level's list whose index is not below `index`.
  __device__ unsigned lower_bound(int level, unsigned size, unsigned index) const {
    const unsigned* const indices = list(level);
    unsigned low = 0;
    while (size > 0) {
      const unsigned half = size / 2;
      if (indices[low + half] < index) {
        low += half + 1;
        size -= half + 1;
      } else {
        size = half;
      }
    }
    return low;
  }

  /// How many entries of a level are in the sequence and have an index below `end`.
  __device__ unsigned entries_below(int level, unsigned end) const {
    if (level == root_level()) return end - first_root_;
    const unsigned parent = end / pooling();
    const unsigned parents = refined(level + 1);
    const unsigned at = lower_bound(level + 1, parents, parent);
    const bool inside = at < parents && list(level + 1)[at] == parent;
    return at * pooling() + (inside ? end % pooling() : 0);
  }

  /// Writes the rows and slots of a level's entries. In post-order an entry comes after all those
  /// that end before it, or with it and are finer: its row is how many these are.
  __device__ void order(int level) const {
    const unsigned count = candidates(level);
    for (unsigned i = threadIdx.x; i < count; i += kThreads) {
      const unsigned index = candidate(level, i);
      unsigned row = i;
      for (int finer = 0; finer < level; ++finer) {
        row += entries_below(finer, (index + 1) * static_cast<unsigned>(g_.window[level - finer]));
      }
      for (int coarser = level + 1; coarser <= root_level(); ++coarser) {
        row += entries_below(coarser, index / static_cast<unsigned>(g_.window[coarser - level]));
      }
      rows_[row] = static_cast<int32_t>(g_.id(level, index));
      if (level > 0) {
        const unsigned at = lower_bound(level, refined(level), index);
        const bool is_refined = at < refined(level) && list(level)[at] == index;
        slots_[g_.coarse(level, index)] = make_slot(first_row_ + row, is_refined);
      }
    }
  }

  const Geometry& g_;
  const int earlier_;
  const float* const scores_q_;
  const float* const scores_k_;
  Slot* const slots_;
  int32_t* const rows_;  // from the tile's first
  const int first_row_;
  const unsigned first_root_, roots_;
  uint32_t* const keys_q_;
  uint32_t* const keys_k_;
  unsigned* const lists_;
  const unsigned list_size_;
  BlockScan::TempStorage& scan_;
  Digits& digits_;
};

/// A block takes one tile of one key/value head.
__global__ void __launch_bounds__(kThreads)
    select_kernel(const __grid_constant__ Select args, const Room room, int* workspace,
                  int64_t words) {
  extern __shared__ int shared[];
  __shared__ BlockScan::TempStorage scan;
  __shared__ Digits digits;
  int* const space = workspace == nullptr ? shared : workspace + blockIdx.x * words;
  const unsigned tiles = static_cast<unsigned>(args.geometry.tiles);
  Tile(args, room, blockIdx.x / tiles, blockIdx.x % tiles, space, scan, digits).select();
}

}  // namespace

int64_t select_workspace_bytes(const Geometry& g, const Shape& shape) {
  const int64_t bytes = Room(g).bytes(g);
  return bytes <= kSharedBytes ? 0 : shape.batch * shape.groups * g.tiles * bytes;
}

void select(const Select& args, void* workspace, Stream stream) {
  const StageRange range("select");
  const Geometry& g = args.geometry;
  const unsigned blocks = grid_of(args.shape.batch * args.shape.groups * g.tiles);
  if (blocks == 0) return;
  const Room room(g);
  const bool in_shared = select_workspace_bytes(g, args.shape) == 0;
  select_kernel<<<blocks, kThreads, in_shared ? room.bytes(g) : 0, stream>>>(
      args, room, in_shared ? nullptr : static_cast<int*>(workspace), room.words(g));
  check_launch("select");
}

}  // namespace lighthouse::cuda
