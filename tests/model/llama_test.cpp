#include "lighthouse/model/llama.h"

#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "lighthouse/io/safetensors.h"
#include "tests/model/support.h"
#include "tests/support/small_model.h"

namespace lighthouse::model {
namespace {

using at::Tensor;
using testing::count_parameters;
using testing::lighthouse_plan;
using testing::random_tokens;
using testing::relative_error;

ModelConfig small_config() { return testing::small_model(3); }

TEST(Llama, AgreesWithHuggingFace) {
  const auto golden = io::read_safetensors(GOLDEN_FOLDER "/llama_tiny.safetensors");
  const auto integer = [&](const char* name) { return std::stoll(golden.metadata.at(name)); };
  ModelConfig config;
  config.vocab_size = integer("vocab_size");
  config.hidden_size = integer("hidden_size");
  config.intermediate_size = integer("intermediate_size");
  config.num_hidden_layers = integer("num_hidden_layers");
  config.num_attention_heads = integer("num_attention_heads");
  config.num_key_value_heads = integer("num_key_value_heads");
  config.head_dim = integer("head_dim");
  config.rope_theta = std::stod(golden.metadata.at("rope_theta"));
  config.rms_norm_eps = std::stod(golden.metadata.at("rms_norm_eps"));
  Llama model(config);
  {
    const at::NoGradGuard no_grad;
    for (auto& parameter : model->named_parameters()) {
      parameter.value().copy_(golden.tensors.at(parameter.key()));
    }
  }
  const Tensor tokens = golden.tensors.at("tokens"), targets = golden.tensors.at("targets");
  const Tensor losses = model->token_losses({tokens, targets});
  (losses * golden.tensors.at("loss_weights")).mean().backward();
  EXPECT_LE(relative_error(model->logits({tokens}), golden.tensors.at("logits")), 1e-5);
  EXPECT_LE(relative_error(losses, golden.tensors.at("losses")), 1e-5);
  size_t gradients = 0;
  for (const auto& [name, gradient] : golden.tensors) {
    if (!name.starts_with("grad.")) continue;
    ++gradients;
    EXPECT_LE(relative_error(model->named_parameters()[name.substr(5)].grad(), gradient), 1e-5)
        << name;
  }
  EXPECT_EQ(gradients, model->named_parameters().size());
}

TEST(Llama, NamesItsParametersAsHuggingFaceDoes) {
  ModelConfig config = small_config();
  config.num_hidden_layers = 1;
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& parameter : Llama(config)->named_parameters()) {
    shapes[parameter.key()] = parameter.value().sizes().vec();
  }
  const std::map<std::string, std::vector<int64_t>> expected{
      {"lm_head.weight", {256, 32}},
      {"model.embed_tokens.weight", {256, 32}},
      {"model.layers.0.input_layernorm.weight", {32}},
      {"model.layers.0.mlp.down_proj.weight", {32, 48}},
      {"model.layers.0.mlp.gate_proj.weight", {48, 32}},
      {"model.layers.0.mlp.up_proj.weight", {48, 32}},
      {"model.layers.0.post_attention_layernorm.weight", {32}},
      {"model.layers.0.self_attn.k_proj.weight", {16, 32}},
      {"model.layers.0.self_attn.o_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.q_proj.weight", {32, 32}},
      {"model.layers.0.self_attn.v_proj.weight", {16, 32}},
      {"model.norm.weight", {32}},
  };
  EXPECT_EQ(shapes, expected);
  EXPECT_EQ(count_parameters(*Llama(config)),
            2 * 256 * 32 + 3 * 32 * 48 + 2 * 16 * 32 + 2 * 32 * 32 + 3 * 32);
  EXPECT_TRUE(Llama(config)->buffers().empty());
}

TEST(Llama, HasTheBiasesOfItsType) {
  const auto biases = [](auto change) {
    ModelConfig config = small_config();
    config.num_hidden_layers = 1;
    change(config);
    const Llama model(config);
    EXPECT_EQ(count_parameters(*model), config.num_parameters());
    std::set<std::string> found;
    for (const auto& parameter : model->named_parameters()) {
      if (!parameter.key().ends_with(".bias")) continue;
      EXPECT_TRUE(at::equal(parameter.value(), at::zeros_like(parameter.value())));
      found.insert(parameter.key().substr(std::string("model.layers.0.").size()));
    }
    return found;
  };
  using Names = std::set<std::string>;
  const Names qkv{"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"};
  Names all = qkv;
  all.insert("self_attn.o_proj.bias");
  EXPECT_EQ(biases([](ModelConfig&) {}), Names());
  EXPECT_EQ(biases([](ModelConfig& c) { c.model_type = ModelType::kMistral; }), Names());
  EXPECT_EQ(biases([](ModelConfig& c) { c.model_type = ModelType::kQwen2; }), qkv);
  EXPECT_EQ(biases([](ModelConfig& c) { c.attention_bias = true; }), all);
  EXPECT_EQ(biases([](ModelConfig& c) { c.mlp_bias = true; }),
            Names({"mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias"}));
}

/// To the bit, and with gradients of a second micro-batch added up.
TEST(Llama, RecomputedLayersHaveTheSameGradients) {
  at::manual_seed(1);
  Llama model(small_config());
  const Tensor tokens = random_tokens(2, 512), targets = random_tokens(2, 512);
  for (const nn::Mode mode : {nn::Mode::kDense, nn::Mode::kLighthouse, nn::Mode::kLocal}) {
    AttentionPlan plan = lighthouse_plan();
    plan.mode = mode;
    plan.config.local = 64;
    model->set_attention(plan);
    std::vector<Tensor> expected;
    for (const bool recompute : {false, true}) {
      model->zero_grad();
      model->set_recompute_layers(recompute);
      for (int i = 0; i < 2; ++i) model->token_losses({tokens, targets}).mean().backward();
      if (!recompute) {
        for (const Tensor& parameter : model->parameters()) {
          expected.push_back(parameter.grad().clone());
        }
        continue;
      }
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(at::equal(model->parameters()[i].grad(), expected[i])) << i;
      }
    }
  }
}

TEST(Llama, TiedEmbeddingsAreOneParameterWithBothGradients) {
  ModelConfig config = small_config();
  at::manual_seed(1);
  Llama untied(config);
  config.tie_word_embeddings = true;
  Llama tied(config);
  EXPECT_EQ(count_parameters(*tied), count_parameters(*untied) - int64_t{256} * 32);
  {
    const at::NoGradGuard no_grad;
    for (auto& parameter : untied->named_parameters()) {
      const bool head = parameter.key() == "lm_head.weight";
      parameter.value().copy_(
          tied->named_parameters()[head ? "model.embed_tokens.weight" : parameter.key()]);
    }
  }
  const Tensor tokens = random_tokens(2, 9), targets = random_tokens(2, 9);
  tied->token_losses({tokens, targets}).sum().backward();
  untied->token_losses({tokens, targets}).sum().backward();
  EXPECT_TRUE(at::equal(tied->logits({tokens}), untied->logits({tokens})));
  const auto grad = [](Llama& model, const char* name) {
    return model->named_parameters()[name].grad();
  };
  EXPECT_LE(
      relative_error(grad(tied, "model.embed_tokens.weight"),
                     grad(untied, "model.embed_tokens.weight") + grad(untied, "lm_head.weight")),
      1e-5);
}

TEST(Llama, InitializesFromTheSeed) {
  const ModelConfig config = small_config();
  at::manual_seed(7);
  Llama one(config);
  at::manual_seed(7);
  Llama two(config);
  Llama other(config);
  for (const auto& parameter : one->named_parameters()) {
    const Tensor& value = parameter.value();
    EXPECT_TRUE(at::equal(value, two->named_parameters()[parameter.key()]));
    if (value.dim() == 1) {
      EXPECT_TRUE(at::equal(value, at::ones_like(value)));
      continue;
    }
    EXPECT_FALSE(at::equal(value, other->named_parameters()[parameter.key()]));
    const bool residual =
        parameter.key().ends_with("o_proj.weight") || parameter.key().ends_with("down_proj.weight");
    const double expected = residual ? 0.1 / std::sqrt(6.0) : 0.1;
    // The standard deviation of 512 samples or more, within five of its standard errors.
    EXPECT_NEAR(value.std().item<double>(), expected, 5 * expected / std::sqrt(2 * 512.0))
        << parameter.key();
  }
}

TEST(Llama, DenseLogitsDependOnThePastAloneToTheBit) {
  at::manual_seed(3);
  Llama model(small_config());
  const at::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(1, 200);
  const Tensor logits = model->logits({tokens});
  for (const int64_t changed : {1, 63, 64, 137, 199}) {
    Tensor others = tokens.clone();
    others.slice(1, changed).add_(1).remainder_(256);
    const Tensor after = model->logits({others});
    EXPECT_TRUE(at::equal(after.slice(1, 0, changed), logits.slice(1, 0, changed))) << changed;
    EXPECT_FALSE(at::equal(after.select(1, changed), logits.select(1, changed))) << changed;
  }
}

TEST(Llama, ALongerSequenceBeforeChangesNothing) {
  at::manual_seed(4);
  for (const RopeType type : {RopeType::kDefault, RopeType::kDynamic}) {
    ModelConfig config = small_config();
    config.rope_scaling.type = type;
    config.rope_scaling.original_context = 20;
    Llama model(config);
    for (const int64_t length : {10, 30}) {
      const Tensor tokens = random_tokens(2, length);
      const Tensor before = model->logits({tokens});
      model->logits({random_tokens(1, 300)});
      EXPECT_TRUE(at::equal(model->logits({tokens}), before)) << to_string(type) << length;
    }
  }
}

TEST(Llama, ComputesInTheTypeOfItsParameters) {
  at::manual_seed(5);
  Llama model(small_config());
  const Tensor tokens = random_tokens(1, 512), targets = random_tokens(1, 512);
  const Tensor losses = model->token_losses({tokens, targets});
  model->to(at::kBFloat16);
  model->set_attention(lighthouse_plan());
  const Tensor trained = model->token_losses({tokens, targets});
  trained.mean().backward();
  EXPECT_EQ(model->named_parameters()["model.norm.weight"].grad().scalar_type(), at::kBFloat16);
  model->eval();
  const Tensor rounded = model->token_losses({tokens, targets});
  EXPECT_EQ(rounded.scalar_type(), at::kFloat);
  // bfloat16 keeps 8 bits, and three layers add up their roundings.
  EXPECT_LE((rounded - losses).abs().max().item<double>(), 0.1);
  EXPECT_EQ(model->logits({tokens}).scalar_type(), at::kBFloat16);
}

class Overfit : public ::testing::TestWithParam<nn::Mode> {};

TEST_P(Overfit, LearnsAShortTextByHeart) {
  at::manual_seed(8);
  Llama model(small_config());
  AttentionPlan plan = lighthouse_plan();
  plan.mode = GetParam();
  model->set_attention(plan);
  const Tensor text = random_tokens(1, 513);
  const Tensor tokens = text.slice(1, 0, 512).contiguous(), targets = text.slice(1, 1).contiguous();
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));
  double loss = 0;
  for (int step = 0; step < 60; ++step) {
    const Tensor mean = model->token_losses({tokens, targets}).mean();
    loss = mean.item<double>();
    optimizer.zero_grad();
    mean.backward();
    optimizer.step();
  }
  // ln 256 = 5.5 is chance, and of random text nothing can be learnt but by heart.
  EXPECT_LT(loss, 0.5);
}

INSTANTIATE_TEST_SUITE_P(Modes, Overfit, ::testing::Values(nn::Mode::kDense, nn::Mode::kLighthouse),
                         [](const auto& mode) {
                           return mode.param == nn::Mode::kDense ? "Dense" : "Lighthouse";
                         });

}  // namespace
}  // namespace lighthouse::model
