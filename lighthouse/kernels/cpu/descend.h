#pragma once

#include <vector>

#include "lighthouse/kernels/cpu/row.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse::cpu {

/// Walks a window from its top to its tokens, carrying the sum of the rows met on the way: what
/// both scatter and the backward of gather do. A sum is formed once for all tokens below it.
template <class T>
class Descent {
 public:
  using Acc = accumulator_t<T>;

  Descent(const Geometry& geometry, int64_t dim)
      : g_(geometry),
        dim_(dim),
        rows_((g_.levels + 1) * dim),
        sums_(g_.levels + 1, rows_.data() + g_.levels * dim) {}

  /// @param root of the window: its tokens are [root p^(L-1), (root + 1) p^(L-1))
  /// @param row_of (level, node) -> the row to add there (null for none) and what divides it
  /// @param emit (token, sum), in the order of tokens
  template <class RowOf, class Emit>
  void descend(int64_t root, const RowOf& row_of, const Emit& emit) {
    const int64_t first = root * g_.root_window();
    for (int64_t t = 0; t < g_.root_window(); ++t) {
      // Nodes that begin at this token have a new sum; those above them keep theirs.
      for (int64_t level = highest_beginning_at(t); level >= 0; --level) {
        const int64_t node = level == 0 ? first + t : (first + t) / g_.window[level];
        const auto [row, divisor] = row_of(level, node);
        if (row == nullptr) {
          sums_[level] = sums_[level + 1];
        } else {
          Acc* own = rows_.data() + level * dim_;
          add_quotient(sums_[level + 1], row, static_cast<Acc>(divisor), dim_, own);
          sums_[level] = own;
        }
      }
      emit(first + t, sums_[0]);
    }
  }

 private:
  /// The highest level at which a node begins at token t of the window. In 32 bits: see row_of.
  int64_t highest_beginning_at(int64_t t) const {
    int64_t level = 0;
    while (level < g_.root_level() &&
           static_cast<uint32_t>(t) % static_cast<uint32_t>(g_.window[level + 1]) == 0) {
      ++level;
    }
    return level;
  }

  const Geometry& g_;
  const int64_t dim_;
  std::vector<Acc> rows_;         // one for each level, and zeros
  std::vector<const Acc*> sums_;  // of each level's node, and zeros at level L
};

}  // namespace lighthouse::cpu
