#include "lighthouse/model/llama.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "lighthouse/model/layers.h"
#include "lighthouse/model/recompute.h"
#include "lighthouse/ops/documents.h"

namespace lighthouse::model {
namespace {

using torch::Tensor;
using torch::nn::Embedding;
using torch::nn::Linear;

Linear linear(int64_t in, int64_t out, bool bias) {
  return Linear(torch::nn::LinearOptions(in, out).bias(bias));
}

Projection of(const Linear& linear) { return {linear->weight, linear->bias}; }

struct RmsNormImpl : torch::nn::Module {
  RmsNormImpl(int64_t size, double epsilon)
      : weight(register_parameter("weight", at::ones({size}))), eps(epsilon) {}

  Tensor forward(const Tensor& x) { return rms_norm(x, weight, eps); }
  Norm get() const { return {weight, eps}; }

  Tensor weight;
  double eps;
};
TORCH_MODULE(RmsNorm);

struct SelfAttentionImpl : torch::nn::Module {
  explicit SelfAttentionImpl(const ModelConfig& c)
      : q_proj(register_module(
            "q_proj", linear(c.hidden_size, c.num_attention_heads * c.head_dim, c.qkv_bias()))),
        k_proj(register_module(
            "k_proj", linear(c.hidden_size, c.num_key_value_heads * c.head_dim, c.qkv_bias()))),
        v_proj(register_module(
            "v_proj", linear(c.hidden_size, c.num_key_value_heads * c.head_dim, c.qkv_bias()))),
        o_proj(register_module(
            "o_proj", linear(c.num_attention_heads * c.head_dim, c.hidden_size, c.attention_bias))),
        attention(register_module("attention", nn::Attention(nn::AttentionOptions{
                                                   .config = {}, .mode = nn::Mode::kDense}))),
        head_dim(c.head_dim) {}

  /// x + attention over x normalized. Heads are (B, N, heads, D), seen as (B, heads, N, D).
  Tensor add_to(const Tensor& x, const Norm& norm, const Rotation& rotation,
                const std::optional<Tensor>& document_starts) {
    const auto [q, k, v] =
        project_heads(x, norm, of(q_proj), of(k_proj), of(v_proj), rotation, head_dim);
    const Tensor out =
        attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), document_starts);
    return add_projected(x, out.transpose(1, 2), of(o_proj));
  }

  Linear q_proj, k_proj, v_proj, o_proj;
  nn::Attention attention;
  int64_t head_dim;
};
TORCH_MODULE(SelfAttention);

struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(const ModelConfig& c)
      : gate_proj(
            register_module("gate_proj", linear(c.hidden_size, c.intermediate_size, c.mlp_bias))),
        up_proj(register_module("up_proj", linear(c.hidden_size, c.intermediate_size, c.mlp_bias))),
        down_proj(
            register_module("down_proj", linear(c.intermediate_size, c.hidden_size, c.mlp_bias))) {}

  /// x + the block's output over x normalized.
  Tensor add_to(const Tensor& x, const Norm& norm) {
    return add_mlp(x, norm, of(gate_proj), of(up_proj), of(down_proj), recompute);
  }

  Linear gate_proj, up_proj, down_proj;
  bool recompute = false;
};
TORCH_MODULE(Mlp);

struct DecoderLayerImpl : torch::nn::Module {
  explicit DecoderLayerImpl(const ModelConfig& c)
      : self_attn(register_module("self_attn", SelfAttention(c))),
        mlp(register_module("mlp", Mlp(c))),
        input_layernorm(register_module("input_layernorm", RmsNorm(c.hidden_size, c.rms_norm_eps))),
        post_attention_layernorm(
            register_module("post_attention_layernorm", RmsNorm(c.hidden_size, c.rms_norm_eps))) {}

  Tensor forward(const Tensor& x, const Rotation& rotation,
                 const std::optional<Tensor>& document_starts) {
    const Tensor attended = self_attn->add_to(x, input_layernorm->get(), rotation, document_starts);
    return mlp->add_to(attended, post_attention_layernorm->get());
  }

  SelfAttention self_attn;
  Mlp mlp;
  RmsNorm input_layernorm, post_attention_layernorm;
};
TORCH_MODULE(DecoderLayer);

}  // namespace

struct DecoderImpl : torch::nn::Module {
  explicit DecoderImpl(const ModelConfig& c)
      : embed_tokens(register_module("embed_tokens", Embedding(c.vocab_size, c.hidden_size))),
        norm(RmsNorm(c.hidden_size, c.rms_norm_eps)),
        head_dim(c.head_dim),
        rope_theta(c.rope_theta),
        rope_scaling(c.rope_scaling) {
    torch::nn::ModuleList list = register_module("layers", torch::nn::ModuleList());
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
      layers.emplace_back(c);
      list->push_back(layers.back());
    }
    register_module("norm", norm);
  }

  Tensor forward(const data::Batch& batch) {
    Tensor x = embed_tokens(batch.tokens);
    const Rotation here = batch.positions.defined()
                              ? Rotation(head_dim, rope_theta, x, rope_scaling, batch.positions)
                              : rotation(x).first(x.size(1));
    const auto starts = ops::given(batch.document_starts);
    for (const DecoderLayer& layer : layers) {
      const auto forward = [own = layer.ptr(), here, starts](const Tensor& of) {
        return own->forward(of, here, starts);
      };
      x = recompute ? recomputed(forward, x) : forward(x);
    }
    return norm(x);
  }

  /// For the positions 0 to N - 1 of x (B, N, ...).
  const Rotation& rotation(const Tensor& x) {
    // Of all lengths up to the longest so far; with dynamic scaling each length has its own, so
    // that what does not depend on what came before it.
    const bool own = rope_scaling.type == RopeType::kDynamic;
    Rotation& found = rotations[own ? std::max(x.size(1), rope_scaling.original_context) : 0];
    if (!found.fits(x)) found = Rotation(head_dim, rope_theta, x, rope_scaling);
    return found;
  }

  Embedding embed_tokens;
  std::vector<DecoderLayer> layers;
  bool recompute = false;
  RmsNorm norm;
  int64_t head_dim;
  double rope_theta;
  RopeScaling rope_scaling;
  std::map<int64_t, Rotation> rotations;
};

LlamaImpl::LlamaImpl(const ModelConfig& config) {
  config.validate();
  decoder_ = register_module("model", std::make_shared<DecoderImpl>(config));
  if (!config.tie_word_embeddings) {
    lm_head_ =
        register_module("lm_head", linear(config.hidden_size, config.vocab_size, false))->weight;
  }

  const at::NoGradGuard no_grad;
  const double residual = std::sqrt(2.0 * static_cast<double>(config.num_hidden_layers));
  for (const auto& parameter : named_parameters()) {
    if (parameter.key().ends_with(".bias")) parameter.value().zero_();
    if (parameter.value().dim() < 2) continue;
    const bool adds_to_residual =
        parameter.key().ends_with("o_proj.weight") || parameter.key().ends_with("down_proj.weight");
    parameter.value().normal_(0, config.initializer_range / (adds_to_residual ? residual : 1.0));
  }
}

void LlamaImpl::reserve_context(int64_t tokens) {
  decoder_->rotation(at::empty({1, tokens, 0}, output_weight().options()));
}

void LlamaImpl::set_recompute_mlp(bool on) {
  for (DecoderLayer& layer : decoder_->layers) layer->mlp->recompute = on;
}

void LlamaImpl::set_recompute_layers(bool on) { decoder_->recompute = on; }

Tensor LlamaImpl::hidden(const data::Batch& batch) { return decoder_->forward(batch); }

Tensor LlamaImpl::output_weight() const {
  return lm_head_.defined() ? lm_head_ : decoder_->embed_tokens->weight;
}

std::vector<nn::Attention> LlamaImpl::attentions() const {
  std::vector<nn::Attention> all;
  for (const DecoderLayer& layer : decoder_->layers) all.push_back(layer->self_attn->attention);
  return all;
}

}  // namespace lighthouse::model
