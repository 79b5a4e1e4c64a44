#pragma once

#include <cstdint>

#include "lighthouse/core/geometry.h"

namespace lighthouse {

/// The tokens of a root: it is of one document alone.
struct Root {
  int32_t first;  ///< the token at its first position; a root that has none is all zeros
  int32_t begin;  ///< the first token of its document
  int32_t end;    ///< the token after the document's last
};

/// Tokens that follow one another.
struct TokenRange {
  int64_t first;
  int64_t count;
};

/// Where a padded position is.
struct Place {
  int64_t token;     ///< or -1 where the position has none
  int64_t document;  ///< the first position of its document
};

/// Documents packed into the rows of a batch. Stages count in *padded positions*, in which every
/// document begins at a root; a table says which tokens the roots stand for. Documents of 6 and 3
/// tokens, where a root has 4:
///
///     tokens      0 1 2 3   4 5   | 6 7 8
///     roots       |   0   |   1   |   2   |
///     positions   0 1 2 3   4 5 - - 8 9 10 -
///
/// Without documents there is no table, and positions are tokens.
struct Documents {
  const Root* roots = nullptr;  ///< (B, R); null: every row is one document

  /// How many positions a row has.
  LIGHTHOUSE_HOST_DEVICE int64_t positions(const Geometry& g) const {
    return roots == nullptr ? g.tokens : g.roots * g.root_window();
  }

  /// What the tokens at `count` positions are, from one that is in a root on: those of its
  /// document. So `range(.., i p^l, p^l)` is the window of entry (l, i), and from g.first_hearer on
  /// they are the tokens that hear it.
  LIGHTHOUSE_HOST_DEVICE TokenRange range(const Geometry& g, int64_t batch, int64_t position,
                                          int64_t count) const {
    if (roots == nullptr) return cut(position, g.tokens, count);
    const Root root = root_at(g, batch, position);
    return cut(root.first + place_in_root(g, position), root.end, count);
  }

  LIGHTHOUSE_HOST_DEVICE Place place(const Geometry& g, int64_t batch, int64_t position) const {
    if (roots == nullptr) return {position < g.tokens ? position : -1, 0};
    const Root root = root_at(g, batch, position);
    const int64_t token = root.first + place_in_root(g, position);
    return {token < root.end ? token : -1, position - (token - root.begin)};
  }

 private:
  // 31 bits hold any position, and division is several times faster in 32 bits than in 64.
  LIGHTHOUSE_HOST_DEVICE Root root_at(const Geometry& g, int64_t batch, int64_t position) const {
    return roots[batch * g.roots +
                 static_cast<uint32_t>(position) / static_cast<uint32_t>(g.root_window())];
  }
  LIGHTHOUSE_HOST_DEVICE static int64_t place_in_root(const Geometry& g, int64_t position) {
    return static_cast<uint32_t>(position) % static_cast<uint32_t>(g.root_window());
  }
  LIGHTHOUSE_HOST_DEVICE static TokenRange cut(int64_t first, int64_t end, int64_t count) {
    const int64_t left = end - first;
    return {first, left < 0 ? 0 : left < count ? left : count};
  }
};

}  // namespace lighthouse
