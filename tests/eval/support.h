#pragma once

#include "lighthouse/model/llama.h"
#include "tests/support/small_model.h"

namespace lighthouse::eval {

inline model::LlamaConfig small_config() { return testing::small_model(2, 0.3); }

inline model::AttentionPlan plan_of(SelectionRule rule) {
  model::AttentionPlan plan;
  plan.mode = nn::Mode::kLighthouse;
  plan.config.budget = 8;
  plan.config.tile_budget = 4;
  plan.config.selection = rule;
  return plan;
}

}  // namespace lighthouse::eval
