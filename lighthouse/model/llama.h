#pragma once

#include <torch/nn/pimpl.h>

#include <memory>
#include <vector>

#include "lighthouse/model/language_model.h"
#include "lighthouse/model/model_config.h"

namespace lighthouse::model {

struct DecoderImpl;

/// The decoder of Llama 3: embedding, layers of (RMSNorm, attention, RMSNorm, SwiGLU), RMSNorm,
/// output projection. Parameter names are those of Hugging Face's LlamaForCausalLM
/// ("model.layers.0..."); with tied embeddings there is no "lm_head.weight". Biases exist where the
/// config has them.
class LlamaImpl : public LanguageModel {
 public:
  /// Initializes from PyTorch's default generator: norms to one, matrices to normal values of the
  /// standard deviation `initializer_range`, divided by sqrt(2 layers) for those that add to the
  /// residual stream, biases to zero. Throws std::invalid_argument as ModelConfig::validate does.
  explicit LlamaImpl(const ModelConfig& config);

  void reserve_context(int64_t tokens) override;
  void set_recompute_mlp(bool on) override;
  void set_recompute_layers(bool on) override;

 protected:
  torch::Tensor hidden(const data::Batch& batch) override;
  torch::Tensor output_weight() const override;
  std::vector<nn::Attention> attentions() const override;

 private:
  std::shared_ptr<DecoderImpl> decoder_;
  torch::Tensor lm_head_;  ///< undefined where embeddings are tied
};
TORCH_MODULE(Llama);

}  // namespace lighthouse::model
