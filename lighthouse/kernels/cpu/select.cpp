#include "lighthouse/kernels/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace lighthouse::cpu {
namespace {

/// One tile of one key/value head. While entries are being chosen, a slot says only whether its
/// entry is refined.
class Tile {
 public:
  Tile(const Select& args, int64_t head, int64_t tile)
      : g_(args.geometry),
        rule_(args.rule),
        scores_q_(args.scores_q + head * g_.coarse_entries()),
        scores_k_(args.scores_k + head * g_.coarse_entries()),
        slots_(args.slots + head * g_.coarse_entries()),
        rows_(args.rows + head * g_.rows),
        next_row_(g_.tile_row(tile)),
        first_root_(g_.tile_root(tile)),
        end_root_(g_.tile_root(tile + 1)) {}

  void select() {
    refine();
    for (int64_t root = first_root_; root < end_root_; ++root) order(g_.root_level(), root);
  }

 private:
  void refine() {
    std::vector<int64_t> candidates(end_root_ - first_root_);
    std::iota(candidates.begin(), candidates.end(), first_root_);
    for (int64_t l = g_.root_level(); l > 0; --l) {
      const int64_t count = g_.window[g_.root_level() - l];
      std::fill(slots_ + g_.coarse(l, first_root_ * count),
                slots_ + g_.coarse(l, end_root_ * count), kNoSlot);
      keep_best(l, candidates);
      std::vector<int64_t> children;
      children.reserve(candidates.size() * g_.pooling);
      for (const int64_t i : candidates) {
        slots_[g_.coarse(l, i)] = make_slot(0, true);
        for (int64_t c = 0; c < g_.pooling; ++c) children.push_back(i * g_.pooling + c);
      }
      candidates = std::move(children);
    }
  }

  /// Leaves the m candidates to refine: m/2 by Q, then, of the others, m - m/2 by K.
  void keep_best(int64_t level, std::vector<int64_t>& candidates) const {
    const int64_t m = g_.tile_budget;
    if (static_cast<int64_t>(candidates.size()) <= m) return;
    const auto higher = [&](const float* scores) {
      return [this, level, scores](int64_t a, int64_t b) {
        const float score_a = judged_by(scores, level, a);
        const float score_b = judged_by(scores, level, b);
        return score_a > score_b || (score_a == score_b && a < b);
      };
    };
    const auto by_q = candidates.begin() + m / 2;
    std::nth_element(candidates.begin(), by_q, candidates.end(), higher(scores_q_));
    std::nth_element(by_q, candidates.begin() + m, candidates.end(), higher(scores_k_));
    candidates.resize(m);
  }

  /// The score that decides about an entry. Entry 0 has the lowest index, so +infinity puts it
  /// before every other.
  float judged_by(const float* scores, int64_t level, int64_t index) const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (index == 0) return kInfinity;
    const float score = scores[g_.coarse(level, index - (rule_ == SelectionRule::kCausal ? 1 : 0))];
    return std::isnan(score) ? -kInfinity
                             : score;  // NaN would leave the candidates without an order
  }

  /// Post-order: an entry's children, then the entry.
  void order(int64_t level, int64_t index) {
    if (level > 0) {
      Slot& slot = slots_[g_.coarse(level, index)];
      const bool refined = is_refined(slot);
      if (refined) {
        for (int64_t c = 0; c < g_.pooling; ++c) order(level - 1, index * g_.pooling + c);
      }
      slot = make_slot(next_row_, refined);
    }
    rows_[next_row_++] = static_cast<int32_t>(g_.id(level, index));
  }

  const Geometry& g_;
  const SelectionRule rule_;
  const float* const scores_q_;  // these four: of this key/value head
  const float* const scores_k_;
  Slot* const slots_;
  int32_t* const rows_;
  int64_t next_row_;
  const int64_t first_root_, end_root_;
};

}  // namespace

void select(const Select& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Tile(args, item / args.geometry.tiles, item % args.geometry.tiles).select();
  }
}

}  // namespace lighthouse::cpu
