#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lighthouse/core/config.h"
#include "lighthouse/data/batch.h"
#include "lighthouse/nn/attention.h"

namespace lighthouse::model {

/// Which attention the layers of a model compute in training.
struct AttentionPlan {
  nn::Mode mode = nn::Mode::kDense;
  Config config;                      ///< of lighthouse and local mode
  std::vector<int64_t> dense_layers;  ///< stay dense in any mode; -1 is the last
  distributed::Context context = {};  ///< the ranks that share each sequence; by default none do
};

/// A model that predicts each next token, as training and evaluation use one. Its kinds differ in
/// what is protected or virtual here; `new_model` makes one.
///
/// It has parameters alone, no buffers, and is dense when new. Activations have the type of the
/// parameters, which `to` changes; losses and rotation angles are float32 whatever that type is.
///
/// Both `logits` and `token_losses` throw std::invalid_argument where a tensor of the batch has
/// another type or shape than data::Batch says. Where it has document_starts, attention keeps the
/// documents of a row apart, in every mode; what these may be, and what is checked where, is said
/// at lighthouse::attention.
class LanguageModel : public torch::nn::Module {
 public:
  /// Those of each token's successor: (B, N, vocabulary). Needs no targets.
  at::Tensor logits(const data::Batch& batch);

  /// The cross entropy of each target, float32 nats (B, N); 0 where there is none
  /// (data::kNoTarget), without a gradient. Logits are formed a chunk of positions at a time, in
  /// the backward pass too, so that (tokens x vocabulary) never exists as a whole. Differentiable
  /// once; with a z_loss the gradient is that of more than is returned (token_loss.h).
  at::Tensor token_losses(const data::Batch& batch, double z_loss = 0);

  /// What this rank has of whole sequences, as the plan's context says, for `logits` and
  /// `token_losses`: the batch itself where no ranks share them. Throws std::invalid_argument where
  /// the ranks cannot divide a sequence.
  data::Batch part_of(const data::Batch& whole) const;

  /// The losses of whole sequences, (B, N), on each of the ranks that share them. All of those call
  /// it with the same batch. Not differentiable where ranks share sequences.
  at::Tensor whole_token_losses(const data::Batch& whole);

  /// Sets every layer's attention; throws std::invalid_argument where a dense layer does not exist
  /// or the settings are out of range.
  void set_attention(const AttentionPlan& plan);

  /// In eval mode all layers are dense unless this is set ("as trained").
  void set_lighthouse_in_eval(bool on);
  bool lighthouse_in_eval() const { return lighthouse_in_eval_; }

  /// Forms what sequences of up to `tokens` tokens need of their positions, so that it stays in
  /// place (a CUDA graph reads it); with dynamic rotary embedding, of those beyond the original
  /// context, what sequences of exactly `tokens` tokens need. The model has its device and type.
  virtual void reserve_context(int64_t tokens) = 0;

  /// Whether the MLPs form their projections again in the backward pass, for less memory.
  virtual void set_recompute_mlp(bool on) = 0;

  /// Whether each layer keeps its input alone and is computed again in the backward pass, which
  /// then has to be backward(), and not grad(): the least memory, for a second forward pass.
  virtual void set_recompute_layers(bool on) = 0;

  /// The parameters themselves, not copies, by name.
  std::map<std::string, at::Tensor> weights() const;

  int64_t vocabulary() const { return output_weight().size(0); }
  at::Device device() const { return output_weight().device(); }

 protected:
  /// What the output projection reads, (B, N, width), of a batch that was checked.
  virtual at::Tensor hidden(const data::Batch& batch) = 0;

  /// The output projection, (vocabulary, width).
  virtual at::Tensor output_weight() const = 0;

  /// The attention of each layer, in their order.
  virtual std::vector<nn::Attention> attentions() const = 0;

 private:
  bool lighthouse_in_eval_ = false;
  distributed::Context context_;
};

}  // namespace lighthouse::model
