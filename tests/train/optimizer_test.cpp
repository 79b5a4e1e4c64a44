#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/support/small_model.h"

namespace lighthouse::train {
namespace {

std::shared_ptr<model::LanguageModel> tiny_model() {
  return model::new_model(testing::small_model(1));
}

void set_gradients(model::LanguageModel& model, double value) {
  for (at::Tensor& parameter : model.parameters()) {
    parameter.mutable_grad() = at::full_like(parameter, value);
  }
}

TEST(AdamW, UpdatesByItsDefinitionAndDecaysMatricesAlone) {
  at::manual_seed(1);
  const auto model = tiny_model();
  run::OptimizerRecipe recipe;
  recipe.weight_decay = 0.5;
  AdamW optimizer(*model, recipe);
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
    set_gradients(*model, g);
    optimizer.collect_gradients();
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
  const auto update_of = [](double gradient, double max_grad_norm) {
    at::manual_seed(1);
    const auto model = tiny_model();
    run::OptimizerRecipe recipe;
    recipe.max_grad_norm = max_grad_norm;
    recipe.eps = 1;  // the size of a gradient then shows in the update
    AdamW optimizer(*model, recipe);
    set_gradients(*model, gradient);
    optimizer.collect_gradients();
    const double norm = optimizer.clip_gradients();
    EXPECT_NEAR(
        norm / (gradient * std::sqrt(static_cast<double>(testing::count_parameters(*model)))), 1,
        1e-5);
    EXPECT_NEAR(optimizer.clip_gradients(), std::min(norm, max_grad_norm), 1e-5 * norm);
    optimizer.step(0.1);
    return optimizer.state().at("exp_avg.model.norm.weight")[0].item<double>();
  };
  const auto model = tiny_model();
  const double norm = 2 * std::sqrt(static_cast<double>(testing::count_parameters(*model)));
  EXPECT_NEAR(update_of(2, 0.5) / (0.1 * 2 * 0.5 / norm), 1, 1e-5);
  EXPECT_NEAR(update_of(1e-4, 0.5) / (0.1 * 1e-4), 1, 1e-5);

  AdamW optimizer(*model, {});
  set_gradients(*model, 1);
  model->parameters()[0].mutable_grad().fill_(std::nan(""));
  optimizer.collect_gradients();
  EXPECT_TRUE(std::isnan(optimizer.clip_gradients()));
}

TEST(AdamW, AddsUpGradientsInFloat32AndKeepsFloat32Weights) {
  at::manual_seed(2);
  const auto model = tiny_model(), exact = tiny_model();
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < model->parameters().size(); ++i) {
      exact->parameters()[i].copy_(model->parameters()[i]);
    }
  }
  AdamW optimizer(*model, {}, at::kBFloat16), reference(*exact, {});
  for (const at::Tensor& parameter : model->parameters()) {
    EXPECT_EQ(parameter.scalar_type(), at::kBFloat16);
  }
  // 1 + 2^-8 is no bfloat16: a sum in that type would lose what is added.
  for (int step = 0; step < 3; ++step) {
    for (const double part : {1.0, 0x1p-8}) {
      set_gradients(*model, part);
      optimizer.collect_gradients();
      EXPECT_FALSE(model->parameters()[0].grad().defined());
    }
    set_gradients(*exact, 1 + 0x1p-8);
    reference.collect_gradients();
    EXPECT_EQ(optimizer.clip_gradients(), reference.clip_gradients());
    optimizer.step(1e-3);
    reference.step(1e-3);
  }
  const auto weights = optimizer.weights();
  for (const auto& parameter : exact->named_parameters()) {
    EXPECT_TRUE(at::equal(weights.at(parameter.key()), parameter.value())) << parameter.key();
  }
  for (const auto& parameter : model->named_parameters()) {
    EXPECT_TRUE(at::equal(parameter.value(), weights.at(parameter.key()).to(at::kBFloat16)));
  }
}

TEST(AdamW, DropsGradients) {
  const auto model = tiny_model();
  AdamW optimizer(*model, {});
  set_gradients(*model, 3);
  optimizer.collect_gradients();
  optimizer.drop_gradients();
  set_gradients(*model, 1);
  optimizer.collect_gradients();
  EXPECT_NEAR(optimizer.clip_gradients(),
              std::sqrt(static_cast<double>(testing::count_parameters(*model))), 1e-3);
}

TEST(AdamW, GivesItsStateItself) {
  const auto model = tiny_model();
  AdamW optimizer(*model, {});
  const auto state = optimizer.state();
  EXPECT_EQ(state.size(), 1 + 2 * model->parameters().size());
  set_gradients(*model, 1);
  optimizer.collect_gradients();
  optimizer.step(0.1);
  const at::Tensor moment = state.at("exp_avg.model.norm.weight");
  EXPECT_EQ(moment.sizes(), at::IntArrayRef({32}));
  EXPECT_NEAR(moment[0].item<double>(), 0.1, 1e-6);
}

}  // namespace
}  // namespace lighthouse::train
