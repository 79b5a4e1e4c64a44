#include "lighthouse/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lighthouse::train {

double learning_rate(const OptimizerRecipe& recipe, int64_t step, int64_t steps) {
  const auto done = static_cast<double>(step + 1);
  const auto warmup = static_cast<double>(recipe.warmup_steps);
  const auto all = static_cast<double>(steps);
  if (done <= warmup) return recipe.lr * done / warmup;
  const auto decayed_since = [&](double first) { return (done - first) / (all - first); };
  double decayed = 0;
  switch (recipe.decay) {
    case Decay::kLinear:
      decayed = decayed_since(warmup);
      break;
    case Decay::kCosine:
      decayed = (1 - std::cos(std::numbers::pi * decayed_since(warmup))) / 2;
      break;
    case Decay::kStable:
      decayed = std::max(0.0, decayed_since(std::max(warmup, all * (1 - recipe.decay_share))));
      break;
  }
  return recipe.lr * (1 - (1 - recipe.final_lr_share) * decayed);
}

double warmup_share(const StageRecipe& stage, int64_t step) {
  if (step >= stage.warmup_steps) return 1;
  return static_cast<double>(step + 1) / static_cast<double>(stage.warmup_steps);
}

}  // namespace lighthouse::train
