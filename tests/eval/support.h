#pragma once

#include <ATen/core/grad_mode.h>

#include <deque>

#include "lighthouse/model/llama.h"
#include "tests/support/small_model.h"

namespace lighthouse::eval {

inline model::ModelConfig small_config() { return testing::small_model(2, 0.3); }

/// @param local tokens of pieces beside Lighthouse; 0: none
inline model::AttentionPlan plan_of(SelectionRule rule, int64_t local = 0) {
  model::AttentionPlan plan;
  plan.mode = nn::Mode::kLighthouse;
  plan.config.local = local;
  plan.config.budget = 8;
  plan.config.tile_budget = 4;
  plan.config.selection = rule;
  return plan;
}

/// Pieces alone.
inline model::AttentionPlan pieces_of(int64_t local) {
  model::AttentionPlan plan;
  plan.mode = nn::Mode::kLocal;
  plan.config.local = local;
  return plan;
}

/// A model for each of `count` ranks that are threads, with the same weights.
inline std::deque<model::Llama> copies_of(const model::Llama& model,
                                          const model::ModelConfig& config, int64_t count) {
  const at::NoGradGuard no_grad;
  std::deque<model::Llama> copies;
  for (int64_t i = 0; i < count; ++i) {
    for (auto& [name, weight] : copies.emplace_back(config)->weights()) {
      weight.copy_(model->weights().at(name));
    }
  }
  return copies;
}

}  // namespace lighthouse::eval
