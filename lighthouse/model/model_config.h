#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "lighthouse/core/words.h"

namespace lighthouse::model {

/// Whose decoder it is, by the names that Hugging Face's model_type has for it. These are one
/// network: a Mistral is a Llama without biases, a Qwen2 one with biases of q, k and v.
enum class ModelType { kLlama, kMistral, kQwen2 };

/// How rotary embedding is stretched beyond the contexts that a model was first trained with, by
/// the names that Hugging Face's rope_type has for it. A pair of coordinates is fast or slow by the
/// turns that it makes over the original context.
enum class RopeType {
  kDefault,  ///< not at all
  kLinear,   ///< every pair turns slower by the factor
  kDynamic,  ///< sequences longer than the original context have a larger theta, by their length
  kYarn,     ///< slow pairs turn slower by the factor, fast ones as before, and those between by
             ///< something between, linear in their index (YaRN, arXiv:2309.00071, section 3)
  kLlama3,   ///< as YaRN, but linear in their turns, and without YaRN's attention factor
};
}  // namespace lighthouse::model
namespace lighthouse {
template <>
inline constexpr std::array kWords<model::ModelType>{"llama", "mistral", "qwen2"};
template <>
inline constexpr std::array kWords<model::RopeType>{"default", "linear", "dynamic", "yarn",
                                                    "llama3"};
}  // namespace lighthouse
namespace lighthouse::model {

struct RopeScaling {
  RopeType type = RopeType::kDefault;
  double factor = 1;
  double low_frequency = 1;   ///< pairs of fewer turns are slow
  double high_frequency = 0;  ///< pairs of more turns are fast; 0: 4 of Llama 3, 32 of YaRN
  int64_t original_context = 8192;
  double attention_factor = 0;  ///< YaRN's, of cosines and sines; 0: 1 + ln(factor) / 10
  bool truncate = true;         ///< YaRN's bounds are whole indices

  /// `high_frequency` and `attention_factor` with what 0 stands for; an attention factor of 1 where
  /// the type has none.
  double fast_turns() const;
  double amplitude() const;
  bool operator==(const RopeScaling&) const = default;
};

/// The type of a model and its sizes. Field names are those of Hugging Face's configurations.
struct ModelConfig {
  ModelType model_type = ModelType::kLlama;
  int64_t vocab_size = 256;
  int64_t hidden_size = 128;
  int64_t intermediate_size = 384;
  int64_t num_hidden_layers = 6;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 4;
  int64_t head_dim = 32;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  double rms_norm_eps = 1e-5;
  double initializer_range = 0.02;
  bool attention_bias = false;  ///< of q, k, v and o, of a Llama
  bool mlp_bias = false;        ///< of gate, up and down, of a Llama
  bool tie_word_embeddings = false;

  bool qkv_bias() const { return attention_bias || model_type == ModelType::kQwen2; }

  /// Throws std::invalid_argument, naming the field, its value and what it must be, also where
  /// Hugging Face's transformers would refuse a model of that type.
  void validate() const;
  int64_t num_parameters() const;
  bool operator==(const ModelConfig&) const = default;
};

class LanguageModel;

/// A new model: on the CPU, in float32, dense, and initialized from PyTorch's default generator.
/// Throws std::invalid_argument as ModelConfig::validate does.
std::shared_ptr<LanguageModel> new_model(const ModelConfig& config);

}  // namespace lighthouse::model
