#include "lighthouse/core/config.h"

#include <cmath>

#include "lighthouse/core/check.h"

namespace lighthouse {

void Config::validate() const {
  check_argument(levels >= 1, "levels is ", levels, "; it must be at least 1");
  check_argument(pooling_factor >= 2, "pooling_factor is ", pooling_factor,
                 "; it must be at least 2");
  check_argument(tile_budget >= 1, "tile_budget is ", tile_budget, "; it must be at least 1");
  check_argument(budget >= 1, "budget is ", budget, "; it must be at least 1");
  check_argument(budget % tile_budget == 0, "budget is ", budget,
                 "; it must be a multiple of tile_budget, which is ", tile_budget);
  check_argument(dilation >= 1, "dilation is ", dilation, "; it must be at least 1");
  check_argument(!scale || std::isfinite(*scale), "scale is ", scale.value_or(0),
                 "; it must be finite");
}

std::string_view to_string(Scorer scorer) { return scorer == Scorer::kNorm ? "norm" : "dilated"; }

std::string_view to_string(SelectionRule rule) {
  return rule == SelectionRule::kPublished ? "published" : "causal";
}

Scorer parse_scorer(std::string_view name) {
  for (Scorer scorer : {Scorer::kNorm, Scorer::kDilated})
    if (name == to_string(scorer)) return scorer;
  throw std::invalid_argument(message("scorer is '", name, "'; it must be 'norm' or 'dilated'"));
}

SelectionRule parse_selection_rule(std::string_view name) {
  for (SelectionRule rule : {SelectionRule::kPublished, SelectionRule::kCausal})
    if (name == to_string(rule)) return rule;
  throw std::invalid_argument(
      message("selection is '", name, "'; it must be 'published' or 'causal'"));
}

}  // namespace lighthouse
