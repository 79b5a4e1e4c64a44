#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <string>

#include "lighthouse/core/config.h"

#ifdef __CUDACC__
#define LIGHTHOUSE_HOST_DEVICE __host__ __device__
#else
#define LIGHTHOUSE_HOST_DEVICE
#endif

namespace lighthouse {

/// Everything about shapes: it follows from (N, L, p, k, m) alone, and from how many documents a
/// row may have, never from data.
///
/// Entry (l, i) stands for the tokens [i p^l, (i+1) p^l). Ids number level 0 first, then level 1,
/// and so on. *Coarse* entries are those above level 0; scores and slots are kept for these only,
/// at index coarse(l, i). Entries past the last token are counted like any other.
struct Geometry {
  static constexpr int kMaxLevels = 31;

  // Each follows from those before it, and nothing changes them: every tile has a root, ids fit
  // into 31 bits, and twice a row too (see Slot).
  const int64_t tokens;                             ///< N
  const int64_t documents;                          ///< M, that a row may have
  const int64_t levels;                             ///< L
  const int64_t pooling;                            ///< p
  const int64_t tiles;                              ///< T = k / m
  const std::array<int64_t, kMaxLevels> window;     ///< p^l, the tokens of a window of level l
  const int64_t roots;                              ///< R = ceil(N / p^(L-1)); of M documents
                                                    ///< floor((N + M (p^(L-1) - 1)) / p^(L-1))
  const std::array<int64_t, kMaxLevels + 1> first;  ///< id of the first entry of level l;
                                                    ///< first[L] is their number
  const int64_t tile_budget;                        ///< m, at most N rounded up to roots
  const int64_t rows;                               ///< S, the length of the gathered sequence

  /// Throws std::invalid_argument where a field of `config` is out of its range, where a tile would
  /// have no roots, or where an entry's id or a row would not fit into 31 bits.
  /// @param documents that a row may have: each begins at a root, so there are more of these
  Geometry(int64_t tokens, const Config& config, int64_t documents = 1);

  /// Whether every tile has a root; where not, the constructor throws.
  static bool tiles_fit(int64_t tokens, const Config& config, int64_t documents = 1);

  LIGHTHOUSE_HOST_DEVICE int64_t root_level() const { return levels - 1; }
  LIGHTHOUSE_HOST_DEVICE int64_t root_window() const { return window[levels - 1]; }
  LIGHTHOUSE_HOST_DEVICE int64_t entries(int64_t level) const {
    return first[level + 1] - first[level];
  }
  LIGHTHOUSE_HOST_DEVICE int64_t coarse_entries() const { return first[levels] - first[1]; }

  LIGHTHOUSE_HOST_DEVICE int64_t id(int64_t level, int64_t index) const {
    return first[level] + index;
  }
  LIGHTHOUSE_HOST_DEVICE int64_t coarse(int64_t level, int64_t index) const {
    return first[level] - first[1] + index;
  }
  LIGHTHOUSE_HOST_DEVICE int64_t level(int64_t id) const {
    int64_t level = 0;
    while (id >= first[level + 1]) ++level;
    return level;
  }

  /// Tokens of the window of (level, index) that lie below N.
  LIGHTHOUSE_HOST_DEVICE int64_t present(int64_t level, int64_t index) const {
    const int64_t begin = index * window[level];
    return begin >= tokens ? 0 : smaller(window[level], tokens - begin);
  }

  /// The entry of a level that position j hears, or -1: the one whose window ends at j or last
  /// before. 31 bits hold any j + 1, and division is several times faster in 32 bits than in 64.
  LIGHTHOUSE_HOST_DEVICE int64_t heard(int64_t level, int64_t position) const {
    return static_cast<int64_t>(static_cast<uint32_t>(position + 1) /
                                static_cast<uint32_t>(window[level])) -
           1;
  }
  /// The first position that hears (level, index), and how many below N do.
  LIGHTHOUSE_HOST_DEVICE int64_t first_hearer(int64_t level, int64_t index) const {
    return (index + 1) * window[level] - 1;
  }
  LIGHTHOUSE_HOST_DEVICE int64_t hearers(int64_t level, int64_t index) const {
    const int64_t begin = first_hearer(level, index);
    return begin >= tokens ? 0 : smaller(window[level], tokens - begin);
  }

  /// First root, and first row, of tile t; t = T gives the ends.
  LIGHTHOUSE_HOST_DEVICE int64_t tile_root(int64_t tile) const { return roots * tile / tiles; }
  LIGHTHOUSE_HOST_DEVICE int64_t tile_row(int64_t tile) const {
    // Tiles have `least` roots or one more: the rows of those before are two products.
    const int64_t least = roots / tiles;
    const int64_t larger = tile_root(tile) - least * tile;
    return (tile - larger) * rows_of(least) + (larger > 0 ? larger * rows_of(least + 1) : 0);
  }

  /// Rows of a tile of that many roots: its roots, and p for every entry refined.
  LIGHTHOUSE_HOST_DEVICE int64_t rows_of(int64_t tile_roots) const {
    int64_t rows_in_tile = tile_roots;
    int64_t candidates = tile_roots;
    for (int64_t l = root_level(); l > 0; --l) {
      candidates = pooling * smaller(tile_budget, candidates);
      rows_in_tile += candidates;
    }
    return rows_in_tile;
  }

 private:
  LIGHTHOUSE_HOST_DEVICE static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
};

std::ostream& operator<<(std::ostream& out, const Geometry& geometry);

/// Why dense attention over `tokens` tokens is the better choice: there are more tiles than roots,
/// or S would not be below N. Empty where Lighthouse pays. Throws std::invalid_argument where a
/// field of `config` is out of its range, or the geometry too large.
/// @param documents that a row may have
std::string dense_because(int64_t tokens, const Config& config, int64_t documents = 1);

/// A coarse entry's slot: the row of the gathered sequence that it has and whether it is refined,
/// or kNoSlot. Level-0 slots are not stored: the p children of a refined level-1 entry take the p
/// rows before it.
using Slot = int32_t;
inline constexpr Slot kNoSlot = -1;
LIGHTHOUSE_HOST_DEVICE constexpr Slot make_slot(int64_t row, bool refined) {
  return static_cast<Slot>(row << 1 | (refined ? 1 : 0));
}
LIGHTHOUSE_HOST_DEVICE constexpr bool in_sequence(Slot slot) { return slot >= 0; }
LIGHTHOUSE_HOST_DEVICE constexpr int64_t slot_row(Slot slot) { return slot >> 1; }
LIGHTHOUSE_HOST_DEVICE constexpr bool is_refined(Slot slot) { return slot >= 0 && (slot & 1) != 0; }

/// The row of entry (level, index), or -1 where it is not in the sequence. `slots` are those of
/// one batch and key/value head.
LIGHTHOUSE_HOST_DEVICE inline int64_t row_of(const Geometry& geometry, const Slot* slots,
                                             int64_t level, int64_t index) {
  if (level > 0) {
    const Slot slot = slots[geometry.coarse(level, index)];
    return in_sequence(slot) ? slot_row(slot) : -1;
  }
  if (geometry.levels == 1) return index;
  // 31 bits hold any index, and division is several times faster in 32 bits than in 64.
  const auto child = static_cast<uint32_t>(index);
  const auto pooling = static_cast<uint32_t>(geometry.pooling);
  const Slot parent = slots[geometry.coarse(1, child / pooling)];
  return is_refined(parent) ? slot_row(parent) - pooling + child % pooling : -1;
}

/// The row that a position hears of a level, or -1 where it hears none.
/// @param document the first position of its document: entries before it are not heard
LIGHTHOUSE_HOST_DEVICE inline int64_t heard_row(const Geometry& geometry, const Slot* slots,
                                                int64_t level, int64_t position,
                                                int64_t document = 0) {
  const int64_t index = geometry.heard(level, position);
  return index * geometry.window[level] < document ? -1 : row_of(geometry, slots, level, index);
}

}  // namespace lighthouse
