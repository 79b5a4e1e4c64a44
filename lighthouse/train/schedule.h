#pragma once

#include <cstdint>

#include "lighthouse/run/recipe.h"

namespace lighthouse::train {

/// The learning rate of a step, counted from 0 over the `steps` of all stages together: it rises
/// linearly to the peak, which the last step of the warm-up has, and decays as the recipe says to
/// the final share of it, which the last step has.
double learning_rate(const run::OptimizerRecipe& recipe, int64_t step, int64_t steps);

/// The same in a run by seconds, of which `spent` of all `seconds` have been spent before the step.
/// The decay counts from the run's start, since no one knows when the warm-up will end: the
/// learning rate is the product of the two.
double learning_rate(const run::OptimizerRecipe& recipe, int64_t step, double spent,
                     double seconds);

/// The share of that learning rate which a step of a stage takes, counted from 0 in the stage: it
/// rises linearly to 1, which the last step of the stage's own warm-up has.
/// @param spent seconds of the stage before the step; in a stage by seconds the share rises to 1
///        within a quarter of them at the latest, however few steps that are
double warmup_share(const run::StageRecipe& stage, int64_t step, double spent);

}  // namespace lighthouse::train
