#pragma once

#include <cstdint>

#include "lighthouse/distributed/attention.h"
#include "lighthouse/distributed/choose_exchange.h"
#include "lighthouse/distributed/world.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe.h"

/// How several ranks run a recipe.
namespace lighthouse::run {

/// The exchange of the stage's attention where ranks share its sequences, and why it is that one.
distributed::ChosenExchange exchange_of(const Recipe& recipe, const StageRecipe& stage);

/// The ranks that share the stage's sequences, as its attention takes them: zigzag, whatever the
/// exchange.
distributed::Context context_of(const Recipe& recipe, const StageRecipe& stage,
                                const distributed::World& context);

/// The stage's attention with the ranks that share its sequences.
model::AttentionPlan attention_plan(const Recipe& recipe, const StageRecipe& stage,
                                    const distributed::World& context);

/// Throws std::invalid_argument unless ranks can share the stage's sequences as the recipe says.
void validate_parallel(const Recipe& recipe, const StageRecipe& stage);

/// Throws std::invalid_argument unless that many ranks can run the recipe, which is valid
/// (Recipe::validate).
void check_ranks(const Recipe& recipe, int64_t ranks);

}  // namespace lighthouse::run
