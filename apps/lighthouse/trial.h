#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "apps/lighthouse/clock.h"
#include "apps/lighthouse/rank.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::app {

/// What some training steps took.
struct Trial {
  Times step;          ///< of the slowest rank
  double waiting = 0;  ///< milliseconds of a step (ExchangeClock); the most of any rank
  std::map<std::string, double> waits;  ///< the same for each kind of exchange
  int64_t peak_bytes = 0;  ///< of the model and its optimizer too; the most of any rank
};

/// Trains the recipe's model for two steps and then, timed, `steps` more, as the stage does, on
/// random tokens. All ranks call it; they can run the recipe (run::check_ranks).
Trial run_trial(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank,
                int steps);

}  // namespace lighthouse::app
