#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// A new model of the recipe on a device, in float32 and dense: initialized from run.seed, to the
/// same weights on every device, with run.recompute_mlp and the contexts of all stages reserved,
/// unless ranks share sequences.
/// Throws std::invalid_argument as ModelConfig::validate does.
std::shared_ptr<model::LanguageModel> new_model(const Recipe& recipe, c10::Device device);

}  // namespace lighthouse::run
