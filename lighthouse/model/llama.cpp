#include "lighthouse/model/llama.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "lighthouse/core/check.h"
#include "lighthouse/model/layers.h"
#include "lighthouse/model/token_loss.h"

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
  explicit SelfAttentionImpl(const LlamaConfig& c)
      : q_proj(register_module(
            "q_proj", linear(c.hidden_size, c.num_attention_heads * c.head_dim, c.qkv_bias()))),
        k_proj(register_module(
            "k_proj", linear(c.hidden_size, c.num_key_value_heads * c.head_dim, c.qkv_bias()))),
        v_proj(register_module(
            "v_proj", linear(c.hidden_size, c.num_key_value_heads * c.head_dim, c.qkv_bias()))),
        o_proj(register_module(
            "o_proj", linear(c.num_attention_heads * c.head_dim, c.hidden_size, c.attention_bias))),
        head_dim(c.head_dim) {
    nn::AttentionOptions dense;
    dense.mode = nn::Mode::kDense;
    set_attention(dense);
  }

  void set_attention(const nn::AttentionOptions& options) {
    attention = nn::Attention(options);
    attention->train(is_training());
    if (named_children().contains("attention")) {
      replace_module("attention", attention);
    } else {
      register_module("attention", attention);
    }
  }

  /// x + attention over x normalized. Heads are (B, N, heads, D), seen as (B, heads, N, D).
  Tensor add_to(const Tensor& x, const Norm& norm, const Rotation& rotation) {
    const auto [q, k, v] =
        project_heads(x, norm, of(q_proj), of(k_proj), of(v_proj), rotation, head_dim);
    const Tensor out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
    return add_projected(x, out.transpose(1, 2), of(o_proj));
  }

  Linear q_proj, k_proj, v_proj, o_proj;
  nn::Attention attention{nullptr};
  int64_t head_dim;
};
TORCH_MODULE(SelfAttention);

struct MlpImpl : torch::nn::Module {
  explicit MlpImpl(const LlamaConfig& c)
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
  explicit DecoderLayerImpl(const LlamaConfig& c)
      : self_attn(register_module("self_attn", SelfAttention(c))),
        mlp(register_module("mlp", Mlp(c))),
        input_layernorm(register_module("input_layernorm", RmsNorm(c.hidden_size, c.rms_norm_eps))),
        post_attention_layernorm(
            register_module("post_attention_layernorm", RmsNorm(c.hidden_size, c.rms_norm_eps))) {}

  Tensor forward(const Tensor& x, const Rotation& rotation) {
    const Tensor attended = self_attn->add_to(x, input_layernorm->get(), rotation);
    return mlp->add_to(attended, post_attention_layernorm->get());
  }

  SelfAttention self_attn;
  Mlp mlp;
  RmsNorm input_layernorm, post_attention_layernorm;
};
TORCH_MODULE(DecoderLayer);

}  // namespace

struct DecoderImpl : torch::nn::Module {
  explicit DecoderImpl(const LlamaConfig& c)
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

  Tensor forward(const Tensor& tokens) {
    Tensor x = embed_tokens(tokens);
    const Rotation here = rotation(x).first(x.size(1));
    for (DecoderLayer& layer : layers) x = layer(x, here);
    return norm(x);
  }

  /// For the positions of x (B, N, ...).
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
  RmsNorm norm;
  int64_t head_dim;
  double rope_theta;
  RopeScaling rope_scaling;
  std::map<int64_t, Rotation> rotations;
};

namespace {

void positive(const char* name, auto value) {
  check_argument(value > 0, name, " is ", value, "; it must be above 0");
}

void validate_scaling(const LlamaConfig& config) {
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

void LlamaConfig::validate() const {
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

int64_t LlamaConfig::num_parameters() const {
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

LlamaImpl::LlamaImpl(const LlamaConfig& config) : config_(config) {
  config_.validate();
  decoder_ = register_module("model", std::make_shared<DecoderImpl>(config_));
  if (!config_.tie_word_embeddings) {
    lm_head_ =
        register_module("lm_head", linear(config_.hidden_size, config_.vocab_size, false))->weight;
  }

  const at::NoGradGuard no_grad;
  const double residual = std::sqrt(2.0 * static_cast<double>(config_.num_hidden_layers));
  for (const auto& parameter : named_parameters()) {
    if (parameter.key().ends_with(".bias")) parameter.value().zero_();
    if (parameter.value().dim() < 2) continue;
    const bool adds_to_residual =
        parameter.key().ends_with("o_proj.weight") || parameter.key().ends_with("down_proj.weight");
    parameter.value().normal_(0, config_.initializer_range / (adds_to_residual ? residual : 1.0));
  }
}

Tensor LlamaImpl::forward(const Tensor& tokens) {
  return at::linear(hidden(tokens), output_weight());
}

Tensor LlamaImpl::token_losses(const Tensor& tokens, const Tensor& targets, double z_loss) {
  check_argument(targets.sizes() == tokens.sizes() && targets.scalar_type() == at::kLong,
                 "targets are ", targets.scalar_type(), " of shape ", targets.sizes(),
                 "; they must be Long of the tokens' shape, ", tokens.sizes());
  return token_loss(hidden(tokens).flatten(0, 1), output_weight(), targets.flatten(), z_loss)
      .view(tokens.sizes());
}

Tensor LlamaImpl::hidden(const Tensor& tokens) {
  check_argument(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.numel() > 0,
                 "tokens are ", tokens.scalar_type(), " of shape ", tokens.sizes(),
                 "; they must be Long of shape (batch, tokens), with one token or more");
  return decoder_->forward(tokens);
}

Tensor LlamaImpl::output_weight() const {
  return lm_head_.defined() ? lm_head_ : decoder_->embed_tokens->weight;
}

void LlamaImpl::set_attention(const AttentionPlan& plan) {
  const int64_t layers = config_.num_hidden_layers;
  const nn::AttentionOptions common{plan.config, plan.mode, lighthouse_in_eval_};
  std::vector<nn::AttentionOptions> options(layers, common);
  for (const int64_t layer : plan.dense_layers) {
    check_argument(-layers <= layer && layer < layers, "dense layer ", layer,
                   " does not exist; it must be from ", -layers, " to ", layers - 1);
    options[layer < 0 ? layers + layer : layer].mode = nn::Mode::kDense;
  }
  for (int64_t i = 0; i < layers; ++i) {
    options[i].config = plan.config.of_layer(i);
    decoder_->layers[i]->self_attn->set_attention(options[i]);
  }
}

void LlamaImpl::reserve_context(int64_t tokens) {
  decoder_->rotation(at::empty({1, tokens, 0}, output_weight().options()));
}

void LlamaImpl::set_recompute_mlp(bool on) {
  for (DecoderLayer& layer : decoder_->layers) layer->mlp->recompute = on;
}

void LlamaImpl::set_lighthouse_in_eval(bool on) {
  lighthouse_in_eval_ = on;
  for (DecoderLayer& layer : decoder_->layers) {
    layer->self_attn->attention->set_lighthouse_in_eval(on);
  }
}

int64_t LlamaImpl::num_parameters() const {
  int64_t total = 0;
  for (const Tensor& parameter : parameters()) total += parameter.numel();
  return total;
}

}  // namespace lighthouse::model
