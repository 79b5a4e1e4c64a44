#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include "apps/lighthouse/clock.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::app {

/// What some training steps took.
struct Trial {
  Times step;
  int64_t peak_bytes = 0;  ///< of the model and its optimizer too
};

/// Trains the recipe's model for two steps and then, timed, `steps` more, as the stage does, on
/// random tokens.
Trial run_trial(const run::Recipe& recipe, const run::StageRecipe& stage, c10::Device device,
                int steps);

}  // namespace lighthouse::app
