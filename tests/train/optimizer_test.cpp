#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace lighthouse::train {
namespace {

model::LlamaConfig tiny() {
  model::LlamaConfig config;
  config.hidden_size = 8;
  config.intermediate_size = 8;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 1;
  config.num_key_value_heads = 1;
  config.head_dim = 4;
  return config;
}

void set_gradients(model::Llama& model, double value) {
  for (at::Tensor& parameter : model->parameters()) {
    parameter.mutable_grad() = at::full_like(parameter, value);
  }
}

TEST(AdamW, UpdatesByItsDefinitionAndDecaysMatricesAlone) {
  at::manual_seed(1);
  model::Llama model(tiny());
  OptimizerRecipe recipe;
  recipe.weight_decay = 0.5;
  AdamW optimizer(model, recipe);
  std::vector<double> expected;
  for (const auto& parameter : model->parameters()) {
    expected.push_back(parameter.flatten()[0].item<double>());
  }
  const double lr = 0.01;
  double m = 0, v = 0;
  for (int step = 1; step <= 3; ++step) {
    const double g = 0.1 * step;
    m = recipe.beta1 * m + (1 - recipe.beta1) * g;
    v = recipe.beta2 * v + (1 - recipe.beta2) * g * g;
    const double update = m / (1 - std::pow(recipe.beta1, step)) /
                          (std::sqrt(v / (1 - std::pow(recipe.beta2, step))) + recipe.eps);
    set_gradients(model, g);
    optimizer.step(lr);
    size_t i = 0;
    for (const auto& parameter : model->parameters()) {
      double& x = expected[i++];
      x -= lr * ((parameter.dim() >= 2 ? recipe.weight_decay * x : 0) + update);
      // A few roundings of float32 a step, to the size of the values.
      EXPECT_NEAR(parameter.flatten()[0].item<double>(), x, 1e-6) << step;
      EXPECT_FALSE(parameter.grad().defined());
    }
  }
  EXPECT_EQ(optimizer.state().at("step").item<double>(), 3);
}

TEST(AdamW, ClipsTheGlobalNorm) {
  model::Llama model(tiny());
  OptimizerRecipe recipe;
  recipe.max_grad_norm = 0.5;
  AdamW optimizer(model, recipe);
  set_gradients(model, 2);
  const double norm = 2 * std::sqrt(static_cast<double>(model->num_parameters()));
  EXPECT_NEAR(optimizer.clip_gradients() / norm, 1, 1e-5);
  EXPECT_NEAR(model->parameters()[0].grad().max().item<double>() / (2 * 0.5 / norm), 1, 1e-5);
  EXPECT_NEAR(optimizer.clip_gradients(), 0.5, 1e-5);

  set_gradients(model, 1e-4);
  optimizer.clip_gradients();
  EXPECT_EQ(model->parameters()[0].grad().max().item<float>(), 1e-4F);

  model->parameters()[0].mutable_grad().fill_(std::nan(""));
  EXPECT_TRUE(std::isnan(optimizer.clip_gradients()));
}

TEST(AdamW, GivesItsStateItself) {
  model::Llama model(tiny());
  AdamW optimizer(model, {});
  const auto state = optimizer.state();
  EXPECT_EQ(state.size(), 1 + 2 * model->parameters().size());
  set_gradients(model, 1);
  optimizer.step(0.1);
  const at::Tensor moment = state.at("exp_avg.model.norm.weight");
  EXPECT_EQ(moment.sizes(), at::IntArrayRef({8}));
  EXPECT_NEAR(moment[0].item<double>(), 0.1, 1e-6);
}

}  // namespace
}  // namespace lighthouse::train
