#include "lighthouse/model/model_config.h"

#include <cmath>

#include "lighthouse/core/check.h"
#include "lighthouse/model/llama.h"

namespace lighthouse::model {
namespace {

void positive(const char* name, auto value) {
  check_argument(value > 0, name, " is ", value, "; it must be above 0");
}

void validate_scaling(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  positive("rope_scaling_factor", scaling.factor);
  check_argument(scaling.type != RopeType::kDefault || scaling.factor == 1,
                 "rope_scaling_factor is ", scaling.factor,
                 "; it must be 1 where rope_type is 'default', which does not scale");
  positive("rope_low_frequency", scaling.low_frequency);
  check_argument(scaling.fast_turns() > scaling.low_frequency, "rope_high_frequency is ",
                 scaling.fast_turns(), "; it must be above rope_low_frequency, ",
                 scaling.low_frequency);
  positive("rope_original_context", scaling.original_context);
  check_argument(scaling.attention_factor >= 0, "rope_attention_factor is ",
                 scaling.attention_factor, "; it must be 0 or more");
  check_argument(scaling.type != RopeType::kDynamic || config.head_dim > 2, "head_dim is ",
                 config.head_dim, "; it must be above 2 where rope_type is 'dynamic'");
  check_argument(scaling.type != RopeType::kYarn || config.rope_theta > 1, "rope_theta is ",
                 config.rope_theta, "; it must be above 1 where rope_type is 'yarn'");
}

}  // namespace

double RopeScaling::fast_turns() const {
  if (high_frequency != 0) return high_frequency;
  return type == RopeType::kYarn ? 32 : 4;
}

double RopeScaling::amplitude() const {
  if (type != RopeType::kYarn) return 1;
  if (attention_factor != 0) return attention_factor;
  return factor <= 1 ? 1 : 1 + 0.1 * std::log(factor);
}

void ModelConfig::validate() const {
  check_argument(vocab_size >= 2, "vocab_size is ", vocab_size, "; it must be 2 or more");
  positive("hidden_size", hidden_size);
  positive("intermediate_size", intermediate_size);
  positive("num_hidden_layers", num_hidden_layers);
  positive("num_attention_heads", num_attention_heads);
  positive("num_key_value_heads", num_key_value_heads);
  check_argument(num_attention_heads % num_key_value_heads == 0, "num_attention_heads is ",
                 num_attention_heads, "; it must be a multiple of num_key_value_heads, ",
                 num_key_value_heads);
  check_argument(model_type != ModelType::kLlama || hidden_size % num_attention_heads == 0,
                 "hidden_size is ", hidden_size, "; it must be a multiple of num_attention_heads, ",
                 num_attention_heads, ", for transformers to load a Llama");
  check_argument(head_dim > 0 && head_dim % 2 == 0, "head_dim is ", head_dim,
                 "; it must be even and above 0");
  positive("rope_theta", rope_theta);
  validate_scaling(*this);
  positive("rms_norm_eps", rms_norm_eps);
  check_argument(initializer_range > 0 && initializer_range <= 1, "initializer_range is ",
                 initializer_range, "; it must be above 0 and at most 1");
  const auto of_llama = [&](const char* name, bool on) {
    check_argument(!on || model_type == ModelType::kLlama, name,
                   " is true; it must be false where ", "model_type is '", to_string(model_type),
                   "', whose biases are fixed");
  };
  of_llama("attention_bias", attention_bias);
  of_llama("mlp_bias", mlp_bias);
}

int64_t ModelConfig::num_parameters() const {
  const int64_t projections =
      2 * hidden_size * head_dim * (num_attention_heads + num_key_value_heads);
  const int64_t qkv_biases = head_dim * (num_attention_heads + 2 * num_key_value_heads);
  const int64_t biases = (qkv_bias() ? qkv_biases : 0) + (attention_bias ? hidden_size : 0) +
                         (mlp_bias ? 2 * intermediate_size + hidden_size : 0);
  const int64_t layer =
      projections + 3 * hidden_size * intermediate_size + 2 * hidden_size + biases;
  const int64_t embeddings = (tie_word_embeddings ? 1 : 2) * vocab_size * hidden_size;
  return embeddings + num_hidden_layers * layer + hidden_size;
}

std::shared_ptr<LanguageModel> new_model(const ModelConfig& config) {
  return std::make_shared<LlamaImpl>(config);
}

}  // namespace lighthouse::model
