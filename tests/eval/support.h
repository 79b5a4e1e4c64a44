#pragma once

#include "lighthouse/model/llama.h"

namespace lighthouse::eval {

inline model::LlamaConfig small_config() {
  model::LlamaConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.initializer_range = 0.3;
  return config;
}

inline model::AttentionPlan plan_of(SelectionRule rule) {
  model::AttentionPlan plan;
  plan.mode = nn::Mode::kLighthouse;
  plan.config.budget = 8;
  plan.config.tile_budget = 4;
  plan.config.selection = rule;
  return plan;
}

}  // namespace lighthouse::eval
