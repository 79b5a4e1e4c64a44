#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "lighthouse/model/layers.h"
#include "lighthouse/nn/attention.h"

namespace lighthouse::model {

/// Whose decoder it is, by the names that Hugging Face's model_type has for it. They are one
/// network: a Mistral is a Llama without biases, a Qwen2 one with biases of q, k and v.
enum class ModelType { kLlama, kMistral, kQwen2 };
}  // namespace lighthouse::model
namespace lighthouse {
template <>
inline constexpr std::array kWords<model::ModelType>{"llama", "mistral", "qwen2"};
}
namespace lighthouse::model {

/// Sizes of a Llama-3-style decoder. Field names are those of Hugging Face's LlamaConfig.
struct LlamaConfig {
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
  /// Hugging Face's transformers would refuse a model of that kind.
  void validate() const;
  int64_t num_parameters() const;
  bool operator==(const LlamaConfig&) const = default;
};

/// Which attention the layers of a model compute in training.
struct AttentionPlan {
  nn::Mode mode = nn::Mode::kDense;
  Config config;                      ///< of lighthouse mode
  std::vector<int64_t> dense_layers;  ///< stay dense in lighthouse mode; -1 is the last
};

struct DecoderImpl;

/// The decoder: embedding, layers of (RMSNorm, attention, RMSNorm, SwiGLU), RMSNorm, output
/// projection. Parameter names are those of Hugging Face's LlamaForCausalLM ("model.layers.0...");
/// with tied embeddings there is no "lm_head.weight". It has no buffers. Biases exist where the
/// config has them.
///
/// A new model is dense. Activations have the type of the parameters, which `to` changes; losses
/// and rotation angles are float32 whatever that type is.
class LlamaImpl : public torch::nn::Module {
 public:
  /// Initializes from PyTorch's default generator: norms to one, matrices to normal values of the
  /// standard deviation `initializer_range`, divided by sqrt(2 layers) for those that add to the
  /// residual stream, biases to zero. Throws std::invalid_argument as LlamaConfig::validate does.
  explicit LlamaImpl(const LlamaConfig& config);

  /// tokens (B, N) int64 -> logits (B, N, vocab_size)
  torch::Tensor forward(const torch::Tensor& tokens);

  /// The cross entropy of each next token, float32 nats: tokens and targets (B, N) int64 -> (B, N).
  /// Logits are formed a chunk of positions at a time, in the backward pass too, so that
  /// (tokens x vocabulary) never exists as a whole. Differentiable once; with a z_loss the gradient
  /// is that of more than is returned (token_loss.h).
  torch::Tensor token_losses(const torch::Tensor& tokens, const torch::Tensor& targets,
                             double z_loss = 0);

  /// Sets every layer's attention; throws std::invalid_argument where a dense layer does not exist
  /// or the settings of lighthouse mode are out of range.
  void set_attention(const AttentionPlan& plan);

  /// Forms what sequences of up to so many tokens need of their positions, so that it stays in
  /// place (a CUDA graph reads it); with dynamic rotary embedding, of those beyond the original
  /// context, what sequences of just so many tokens need. The model has its device and type.
  void reserve_context(int64_t tokens);

  /// Whether the MLPs form their projections again in the backward pass, for less memory.
  void set_recompute_mlp(bool on);

  /// In eval mode all layers are dense unless this is set ("as trained").
  void set_lighthouse_in_eval(bool on);
  bool lighthouse_in_eval() const { return lighthouse_in_eval_; }

  const LlamaConfig& config() const { return config_; }
  int64_t num_parameters() const;

 private:
  torch::Tensor hidden(const torch::Tensor& tokens);
  torch::Tensor output_weight() const;

  LlamaConfig config_;
  bool lighthouse_in_eval_ = false;
  std::shared_ptr<DecoderImpl> decoder_;
  torch::Tensor lm_head_;  ///< undefined where embeddings are tied
};
TORCH_MODULE(Llama);

}  // namespace lighthouse::model
