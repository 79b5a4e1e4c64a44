#include "lighthouse/model/llama.h"

#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "lighthouse/io/safetensors.h"
#include "tests/support/small_model.h"

namespace lighthouse::model {
namespace {

using at::Tensor;

LlamaConfig small_config() { return testing::small_model(3); }

/// 512 tokens gather 32 roots and 2 * 4 * 16 children: 160 rows.
AttentionPlan lighthouse_plan() {
  AttentionPlan plan;
  plan.mode = nn::Mode::kLighthouse;
  plan.config.budget = 16;
  plan.config.tile_budget = 8;
  return plan;
}

Tensor random_tokens(int64_t batch, int64_t tokens) {
  return at::randint(0, 256, {batch, tokens}, at::kLong);
}

std::vector<nn::AttentionImpl*> attentions(Llama& model) {
  std::vector<nn::AttentionImpl*> found;
  for (const auto& module : model->modules()) {
    if (auto* attention = module->as<nn::AttentionImpl>()) found.push_back(attention);
  }
  return found;
}

double relative_error(const Tensor& value, const Tensor& reference) {
  EXPECT_EQ(value.sizes(), reference.sizes());
  return ((value - reference).abs().max() / reference.abs().max()).item<double>();
}

TEST(Llama, ShiftsThePiecesOfEverySecondLayer) {
  Llama model(small_config());
  AttentionPlan plan = lighthouse_plan();
  plan.config.local = 64;
  model->set_attention(plan);
  std::vector<int64_t> shifts;
  for (const auto* attention : attentions(model)) {
    shifts.push_back(attention->options().config.local_shift);
  }
  EXPECT_EQ(shifts, (std::vector<int64_t>{0, 32, 0}));
}

TEST(Llama, AgreesWithHuggingFace) {
  const auto golden = io::read_safetensors(GOLDEN_FOLDER "/llama_tiny.safetensors");
  const auto integer = [&](const char* name) { return std::stoll(golden.metadata.at(name)); };
  LlamaConfig config;
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
  const Tensor losses = model->token_losses(tokens, targets);
  (losses * golden.tensors.at("loss_weights")).mean().backward();
  EXPECT_LE(relative_error(model->forward(tokens), golden.tensors.at("logits")), 1e-5);
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
  LlamaConfig config = small_config();
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
  EXPECT_EQ(Llama(config)->num_parameters(),
            2 * 256 * 32 + 3 * 32 * 48 + 2 * 16 * 32 + 2 * 32 * 32 + 3 * 32);
  EXPECT_TRUE(Llama(config)->buffers().empty());
}

TEST(Llama, HasTheBiasesOfItsType) {
  const auto biases = [](auto change) {
    LlamaConfig config = small_config();
    config.num_hidden_layers = 1;
    change(config);
    const Llama model(config);
    EXPECT_EQ(model->num_parameters(), config.num_parameters());
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
  EXPECT_EQ(biases([](LlamaConfig&) {}), Names());
  EXPECT_EQ(biases([](LlamaConfig& c) { c.model_type = ModelType::kMistral; }), Names());
  EXPECT_EQ(biases([](LlamaConfig& c) { c.model_type = ModelType::kQwen2; }), qkv);
  EXPECT_EQ(biases([](LlamaConfig& c) { c.attention_bias = true; }), all);
  EXPECT_EQ(biases([](LlamaConfig& c) { c.mlp_bias = true; }),
            Names({"mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias"}));
}

TEST(Llama, TiedEmbeddingsAreOneParameterWithBothGradients) {
  LlamaConfig config = small_config();
  at::manual_seed(1);
  Llama untied(config);
  config.tie_word_embeddings = true;
  Llama tied(config);
  EXPECT_EQ(tied->num_parameters(), untied->num_parameters() - int64_t{256} * 32);
  {
    const at::NoGradGuard no_grad;
    for (auto& parameter : untied->named_parameters()) {
      const bool head = parameter.key() == "lm_head.weight";
      parameter.value().copy_(
          tied->named_parameters()[head ? "model.embed_tokens.weight" : parameter.key()]);
    }
  }
  const Tensor tokens = random_tokens(2, 9), targets = random_tokens(2, 9);
  tied->token_losses(tokens, targets).sum().backward();
  untied->token_losses(tokens, targets).sum().backward();
  EXPECT_TRUE(at::equal(tied->forward(tokens), untied->forward(tokens)));
  const auto grad = [](Llama& model, const char* name) {
    return model->named_parameters()[name].grad();
  };
  EXPECT_LE(
      relative_error(grad(tied, "model.embed_tokens.weight"),
                     grad(untied, "model.embed_tokens.weight") + grad(untied, "lm_head.weight")),
      1e-5);
}

TEST(Llama, InitializesFromTheSeed) {
  const LlamaConfig config = small_config();
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

TEST(Llama, LossesAreThoseOfItsLogits) {
  at::manual_seed(2);
  Llama model(small_config());
  const Tensor tokens = random_tokens(3, 21), targets = random_tokens(3, 21);
  const Tensor losses = model->token_losses(tokens, targets);
  EXPECT_EQ(losses.sizes(), tokens.sizes());
  const Tensor plain = at::cross_entropy_loss(model->forward(tokens).transpose(1, 2), targets, {},
                                              at::Reduction::None);
  EXPECT_LE(relative_error(losses, plain), 1e-5);
}

TEST(Llama, DenseLogitsDependOnThePastAloneToTheBit) {
  at::manual_seed(3);
  Llama model(small_config());
  const at::NoGradGuard no_grad;
  const Tensor tokens = random_tokens(1, 200);
  const Tensor logits = model->forward(tokens);
  for (const int64_t changed : {1, 63, 64, 137, 199}) {
    Tensor others = tokens.clone();
    others.slice(1, changed).add_(1).remainder_(256);
    const Tensor after = model->forward(others);
    EXPECT_TRUE(at::equal(after.slice(1, 0, changed), logits.slice(1, 0, changed))) << changed;
    EXPECT_FALSE(at::equal(after.select(1, changed), logits.select(1, changed))) << changed;
  }
}

TEST(Llama, ALongerSequenceBeforeChangesNothing) {
  at::manual_seed(4);
  for (const RopeType type : {RopeType::kDefault, RopeType::kDynamic}) {
    LlamaConfig config = small_config();
    config.rope_scaling.type = type;
    config.rope_scaling.original_context = 20;
    Llama model(config);
    for (const int64_t length : {10, 30}) {
      const Tensor tokens = random_tokens(2, length);
      const Tensor before = model->forward(tokens);
      model->forward(random_tokens(1, 300));
      EXPECT_TRUE(at::equal(model->forward(tokens), before)) << to_string(type) << length;
    }
  }
}

TEST(Llama, ComputesInTheTypeOfItsParameters) {
  at::manual_seed(5);
  Llama model(small_config());
  const Tensor tokens = random_tokens(1, 512), targets = random_tokens(1, 512);
  const Tensor losses = model->token_losses(tokens, targets);
  model->to(at::kBFloat16);
  model->set_attention(lighthouse_plan());
  const Tensor trained = model->token_losses(tokens, targets);
  trained.mean().backward();
  EXPECT_EQ(model->named_parameters()["model.norm.weight"].grad().scalar_type(), at::kBFloat16);
  model->eval();
  const Tensor rounded = model->token_losses(tokens, targets);
  EXPECT_EQ(rounded.scalar_type(), at::kFloat);
  // bfloat16 keeps 8 bits, and three layers add up their roundings.
  EXPECT_LE((rounded - losses).abs().max().item<double>(), 0.1);
  EXPECT_EQ(model->forward(tokens).scalar_type(), at::kBFloat16);
}

TEST(Llama, SetsTheAttentionOfEachLayer) {
  Llama model(small_config());
  for (auto* attention : attentions(model)) {
    EXPECT_EQ(attention->options().mode, nn::Mode::kDense);
  }
  AttentionPlan plan = lighthouse_plan();
  plan.dense_layers = {0, -1};
  model->set_attention(plan);
  const auto found = attentions(model);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0]->options().mode, nn::Mode::kDense);
  EXPECT_EQ(found[1]->options().mode, nn::Mode::kLighthouse);
  EXPECT_EQ(found[2]->options().mode, nn::Mode::kDense);
  EXPECT_EQ(found[1]->options().config, plan.config);
  EXPECT_TRUE(found[1]->uses_lighthouse(512));
  EXPECT_FALSE(found[1]->uses_lighthouse(16));
}

TEST(Llama, EvaluatesDenselyUnlessTold) {
  at::manual_seed(6);
  Llama model(small_config());
  const Tensor tokens = random_tokens(1, 512);
  const Tensor dense = model->forward(tokens);
  model->set_attention(lighthouse_plan());
  const Tensor lighthouse = model->forward(tokens);
  EXPECT_FALSE(at::equal(lighthouse, dense));
  model->eval();
  EXPECT_TRUE(at::equal(model->forward(tokens), dense));
  model->set_lighthouse_in_eval(true);
  EXPECT_TRUE(at::equal(model->forward(tokens), lighthouse));
  model->set_attention(lighthouse_plan());
  EXPECT_TRUE(at::equal(model->forward(tokens), lighthouse));
  model->set_lighthouse_in_eval(false);
  EXPECT_TRUE(at::equal(model->forward(tokens), dense));
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(Llama, NamesWhatIsWrong) {
  Llama model(small_config());
  AttentionPlan plan = lighthouse_plan();
  plan.dense_layers = {3};
  EXPECT_EQ(error_of([&] { model->set_attention(plan); }),
            "dense layer 3 does not exist; it must be from -3 to 2");
  plan.dense_layers = {-4};
  EXPECT_EQ(error_of([&] { model->set_attention(plan); }),
            "dense layer -4 does not exist; it must be from -3 to 2");
  const Tensor tokens = random_tokens(1, 4);
  EXPECT_EQ(error_of([&] { model->forward(tokens.to(at::kFloat)); }),
            "tokens are Float of shape [1, 4]; they must be Long of shape (batch, tokens), with "
            "one token or more");
  EXPECT_EQ(error_of([&] { model->forward(tokens[0]); }),
            "tokens are Long of shape [4]; they must be Long of shape (batch, tokens), with one "
            "token or more");
  EXPECT_EQ(error_of([&] { model->token_losses(tokens, tokens.slice(1, 1)); }),
            "targets are Long of shape [1, 3]; they must be Long of the tokens' shape, [1, 4]");
}

TEST(LlamaConfig, NamesTheFieldThatIsOutOfRange) {
  const auto error = [](auto change) {
    LlamaConfig config;
    change(config);
    return error_of([&] { config.validate(); });
  };
  EXPECT_EQ(error([](LlamaConfig&) {}), "no error");
  EXPECT_EQ(error([](LlamaConfig& c) { c.hidden_size = 0; }),
            "hidden_size is 0; it must be above 0");
  EXPECT_EQ(error([](LlamaConfig& c) { c.vocab_size = 1; }),
            "vocab_size is 1; it must be 2 or more");
  EXPECT_EQ(error([](LlamaConfig& c) { c.num_key_value_heads = 3; }),
            "num_attention_heads is 4; it must be a multiple of num_key_value_heads, 3");
  EXPECT_EQ(error([](LlamaConfig& c) { c.head_dim = 7; }),
            "head_dim is 7; it must be even and above 0");
  EXPECT_EQ(error([](LlamaConfig& c) { c.rope_theta = std::nan(""); }),
            "rope_theta is nan; it must be above 0");
  EXPECT_EQ(error([](LlamaConfig& c) { c.initializer_range = 1.5; }),
            "initializer_range is 1.5; it must be above 0 and at most 1");
}

TEST(LlamaConfig, RefusesWhatTransformersWouldNotLoad) {
  LlamaConfig config;
  config.hidden_size = 36;
  config.num_attention_heads = config.num_key_value_heads = 8;
  EXPECT_EQ(error_of([&] { config.validate(); }),
            "hidden_size is 36; it must be a multiple of num_attention_heads, 8, for transformers "
            "to load a Llama");
  config.model_type = ModelType::kMistral;
  EXPECT_EQ(error_of([&] { config.validate(); }), "no error");
  config.mlp_bias = true;
  EXPECT_EQ(error_of([&] { config.validate(); }),
            "mlp_bias is true; it must be false where model_type is 'mistral', whose biases are "
            "fixed");
}

TEST(LlamaConfig, RefusesScalingThatIsNone) {
  const auto error = [](auto change) {
    LlamaConfig config;
    change(config, config.rope_scaling);
    return error_of([&] { config.validate(); });
  };
  EXPECT_EQ(error([](LlamaConfig&, RopeScaling& s) { s.factor = 8; }),
            "rope_scaling_factor is 8; it must be 1 where rope_type is 'default', which does not "
            "scale");
  EXPECT_EQ(error([](LlamaConfig&, RopeScaling& s) {
              s.type = RopeType::kLlama3;
              s.low_frequency = 5;
            }),
            "rope_high_frequency is 4; it must be above rope_low_frequency, 5");
  EXPECT_EQ(error([](LlamaConfig& c, RopeScaling& s) {
              s.type = RopeType::kDynamic;
              c.head_dim = 2;
            }),
            "head_dim is 2; it must be above 2 where rope_type is 'dynamic'");
  EXPECT_EQ(error([](LlamaConfig& c, RopeScaling& s) {
              s.type = RopeType::kYarn;
              c.rope_theta = 1;
            }),
            "rope_theta is 1; it must be above 1 where rope_type is 'yarn'");
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
    const Tensor mean = model->token_losses(tokens, targets).mean();
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
