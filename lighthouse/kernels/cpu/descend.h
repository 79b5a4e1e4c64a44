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
    for (int64_t token = first; token < first + g_.root_window(); ++token) {
      // Nodes that begin at this token have a new sum; those above them keep theirs.
      int64_t level = 0;
      while (level < g_.root_level() && token % g_.window[level + 1] == 0) ++level;
      for (; level >= 0; --level) {
        const auto [row, divisor] = row_of(level, token / g_.window[level]);
        if (row == nullptr) {
          sums_[level] = sums_[level + 1];
        } else {
          Acc* own = rows_.data() + level * dim_;
          add_quotient(sums_[level + 1], row, static_cast<Acc>(divisor), dim_, own);
          sums_[level] = own;
        }
      }
      emit(token, sums_[0]);
    }
  }

 private:
  const Geometry& g_;
  const int64_t dim_;
  std::vector<Acc> rows_;         // one for each level, and zeros
  std::vector<const Acc*> sums_;  // of each level's node, and zeros at level L
};

}  // namespace lighthouse::cpu
