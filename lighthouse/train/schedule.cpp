#include "lighthouse/train/schedule.h"

namespace lighthouse::train {

double learning_rate(const OptimizerRecipe& recipe, int64_t step, int64_t steps) {
  const auto done = static_cast<double>(step + 1);
  const auto warmup = static_cast<double>(recipe.warmup_steps);
  if (done <= warmup) return recipe.lr * done / warmup;
  const double decayed = (done - warmup) / (static_cast<double>(steps) - warmup);
  return recipe.lr * (1 - (1 - recipe.final_lr_share) * decayed);
}

}  // namespace lighthouse::train
