#pragma once

#include <torch/nn/module.h>

#include "lighthouse/model/language_model.h"
#include "lighthouse/model/model_config.h"

namespace lighthouse::testing {

/// A model of bytes with grouped queries, small enough for any test.
inline model::ModelConfig small_model(int64_t layers, double initializer_range = 0.1) {
  model::ModelConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.initializer_range = initializer_range;
  return config;
}

/// 512 tokens gather 32 roots and 2 * 4 * 16 children: 160 rows.
inline model::AttentionPlan lighthouse_plan() {
  model::AttentionPlan plan;
  plan.mode = nn::Mode::kLighthouse;
  plan.config.budget = 16;
  plan.config.tile_budget = 8;
  return plan;
}

inline int64_t count_parameters(const torch::nn::Module& model) {
  int64_t total = 0;
  for (const at::Tensor& parameter : model.parameters()) total += parameter.numel();
  return total;
}

}  // namespace lighthouse::testing
