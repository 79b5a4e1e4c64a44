#include "lighthouse/model/language_model.h"

#include <ATen/ATen.h>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/chunks.h"
#include "lighthouse/distributed/world.h"
#include "lighthouse/model/token_loss.h"

namespace lighthouse::model {
namespace {

using at::Tensor;

void check_tokens(const Tensor& tokens) {
  check_argument(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.numel() > 0,
                 "tokens are ", tokens.scalar_type(), " of shape ", tokens.sizes(),
                 "; they must be Long of shape (batch, tokens), with one token or more");
}

/// Targets, or positions.
void check_like_tokens(const char* name, const Tensor& tensor, const Tensor& tokens) {
  check_argument(tensor.sizes() == tokens.sizes() && tensor.scalar_type() == at::kLong, name,
                 " are ", tensor.scalar_type(), " of shape ", tensor.sizes(),
                 "; they must be Long of the tokens' shape, ", tokens.sizes());
}

void check_document_starts(const Tensor& starts, int64_t rows) {
  check_argument(starts.dim() == 2 && starts.size(0) == rows && starts.size(1) > 0 &&
                     starts.scalar_type() == at::kInt,
                 "document_starts are ", starts.scalar_type(), " of shape ", starts.sizes(),
                 "; they must be Int of shape (", rows, ", documents)");
}

void check_inputs(const data::Batch& batch) {
  check_tokens(batch.tokens);
  if (batch.positions.defined()) check_like_tokens("positions", batch.positions, batch.tokens);
  if (batch.document_starts.defined()) {
    check_document_starts(batch.document_starts, batch.tokens.size(0));
  }
}

}  // namespace

Tensor LanguageModel::logits(const data::Batch& batch) {
  check_inputs(batch);
  return at::linear(hidden(batch), output_weight());
}

Tensor LanguageModel::token_losses(const data::Batch& batch, double z_loss) {
  check_inputs(batch);
  check_argument(batch.targets.defined(), "the batch has no targets; losses need them");
  check_like_tokens("targets", batch.targets, batch.tokens);
  return token_loss(hidden(batch).flatten(0, 1), output_weight(), batch.targets.flatten(), z_loss)
      .view(batch.tokens.sizes());
}

data::Batch LanguageModel::part_of(const data::Batch& whole) const {
  if (context_.group.empty()) return whole;
  const auto world = distributed::World::named(context_.group);
  const int64_t rank = world.rank(), ranks = world.size();
  return context_.is_zigzag() ? whole.chunks(distributed::chunks_of(rank, ranks), 2 * ranks)
                              : whole.chunks({rank}, ranks);
}

Tensor LanguageModel::whole_token_losses(const data::Batch& whole) {
  const Tensor own = token_losses(part_of(whole));
  if (context_.group.empty()) return own;
  const std::vector<Tensor> all = distributed::World::named(context_.group).gather(own);
  return context_.is_zigzag() ? distributed::in_sequence(at::stack(all), 1) : at::cat(all, 1);
}

void LanguageModel::set_attention(const AttentionPlan& plan) {
  std::vector<nn::Attention> layers = attentions();
  const auto count = static_cast<int64_t>(layers.size());
  std::vector<nn::Mode> modes(layers.size(), plan.mode);
  for (const int64_t layer : plan.dense_layers) {
    check_argument(-count <= layer && layer < count, "dense layer ", layer,
                   " does not exist; it must be from ", -count, " to ", count - 1);
    modes[layer < 0 ? count + layer : layer] = nn::Mode::kDense;
  }
  for (int64_t i = 0; i < count; ++i) {
    layers[i]->set_config(plan.config.of_layer(i));
    layers[i]->set_mode(modes[i]);
    layers[i]->set_context(plan.context);
  }
  context_ = plan.context;
}

void LanguageModel::set_lighthouse_in_eval(bool on) {
  lighthouse_in_eval_ = on;
  for (nn::Attention& attention : attentions()) attention->set_lighthouse_in_eval(on);
}

std::map<std::string, Tensor> LanguageModel::weights() const {
  std::map<std::string, Tensor> all;
  for (const auto& parameter : named_parameters())
    all[parameter.key()] = parameter.value().detach();
  return all;
}

}  // namespace lighthouse::model
