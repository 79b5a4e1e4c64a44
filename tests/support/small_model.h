#pragma once

#include "lighthouse/model/llama.h"

namespace lighthouse::testing {

/// A model of bytes with grouped queries, small enough for any test.
inline model::LlamaConfig small_model(int64_t layers, double initializer_range = 0.1) {
  model::LlamaConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.initializer_range = initializer_range;
  return config;
}

}  // namespace lighthouse::testing
