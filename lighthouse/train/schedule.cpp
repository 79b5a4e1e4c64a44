#include "lighthouse/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lighthouse::train {
namespace {

/// Of the peak, where so much of `all` is done, in steps or seconds, and the decay begins at
/// `first`.
double share_of_peak(const run::OptimizerRecipe& recipe, double done, double all, double first) {
  const auto decayed_since = [&](double from) { return (done - from) / (all - from); };
  double decayed = 0;
  switch (recipe.decay) {
    case run::Decay::kLinear:
      decayed = decayed_since(first);
      break;
    case run::Decay::kCosine:
      decayed = (1 - std::cos(std::numbers::pi * decayed_since(first))) / 2;
      break;
    case run::Decay::kStable:
      decayed = std::max(0.0, decayed_since(std::max(first, all * (1 - recipe.decay_share))));
      break;
  }
  return 1 - (1 - recipe.final_lr_share) * decayed;
}

}  // namespace

double learning_rate(const run::OptimizerRecipe& recipe, int64_t step, int64_t steps) {
  const auto done = static_cast<double>(step + 1);
  const auto warmup = static_cast<double>(recipe.warmup_steps);
  if (done <= warmup) return recipe.lr * done / warmup;
  return recipe.lr * share_of_peak(recipe, done, static_cast<double>(steps), warmup);
}

double learning_rate(const run::OptimizerRecipe& recipe, int64_t step, double spent,
                     double seconds) {
  const auto done = static_cast<double>(step + 1);
  const auto warmup = static_cast<double>(recipe.warmup_steps);
  const double risen = done < warmup ? done / warmup : 1;
  return recipe.lr * risen * share_of_peak(recipe, std::min(spent, seconds), seconds, 0);
}

double warmup_share(const run::StageRecipe& stage, int64_t step, double spent) {
  if (step >= stage.warmup_steps) return 1;
  const double risen = static_cast<double>(step + 1) / static_cast<double>(stage.warmup_steps);
  return stage.by_seconds() ? std::min(1.0, std::max(risen, 4 * spent / stage.seconds)) : risen;
}

}  // namespace lighthouse::train
