#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "tests/distributed/ranks.h"
#include "tests/support/small_model.h"
#include "tests/support/throws.h"

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

/// Gradients whose parts, of shares that are powers of two, add up without rounding.
void set_shares(model::LanguageModel& model, int step, double share) {
  for (at::Tensor& parameter : model.parameters()) {
    const at::Tensor ramp = at::arange(parameter.numel(), at::kFloat).add(step).cos();
    parameter.mutable_grad() = ramp.to(parameter.scalar_type()).mul(share).view(parameter.sizes());
  }
}

bool equal(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  return a.size() == b.size() && std::ranges::all_of(a, [&](const auto& named) {
           return b.contains(named.first) && at::equal(named.second, b.at(named.first));
         });
}

/// By type, and whether ranks have parts.
class SharedAdamW : public ::testing::TestWithParam<std::tuple<at::ScalarType, bool>> {
 protected:
  const at::ScalarType type = std::get<0>(GetParam());
  const bool shard = std::get<1>(GetParam());
};

/// To the bit: rows of the tiny model are multiples of any vector, and gradients add up exactly.
TEST_P(SharedAdamW, UpdatesAsOneRankDoes) {
  run::OptimizerRecipe recipe;
  recipe.max_grad_norm = 1e9;
  testing::run_ranks(3, [&](const distributed::World& world) {
    const auto model = tiny_model(), reference = tiny_model();
    AdamW shared(*model, recipe, type, world, shard), alone(*reference, recipe, type);
    const auto weights = shared.weights(), state = shared.state();
    if (world.is_first()) alone.restore(weights, state, "rank 0");
    for (int step = 1; step <= 3; ++step) {
      for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
        set_shares(*model, step, world.is_first() ? 0.5 : 0.25);
        set_shares(*reference, step, 1);
        shared.collect_gradients();
        alone.collect_gradients();
        EXPECT_FALSE(model->parameters()[0].grad().defined());
      }
      shared.reduce_gradients();
      const double norm = shared.clip_gradients(), expected = alone.clip_gradients();
      EXPECT_NEAR(norm / expected, 1, 1e-5);  // one rank sums squares in float32
      shared.step(0.01);
      alone.step(0.01);
      const auto now = shared.weights(), moments = shared.state();
      EXPECT_EQ(now.empty(), shard && !world.is_first());
      EXPECT_EQ(moments.empty(), shard && !world.is_first());
      if (!world.is_first()) continue;
      EXPECT_TRUE(equal(now, alone.weights())) << step;
      EXPECT_TRUE(equal(moments, alone.state())) << step;
      for (const auto& [name, parameter] : model->weights()) {
        EXPECT_TRUE(at::equal(parameter, now.at(name).to(type))) << name;
      }
    }
    // Every rank computes with the same weights.
    for (const at::Tensor& parameter : model->parameters()) {
      const std::vector<at::Tensor> all = world.gather(parameter);
      for (const at::Tensor& other : all) EXPECT_TRUE(at::equal(other, all[0]));
    }
  });
}

TEST_P(SharedAdamW, TakesOverTheStateOfAnyNumberOfRanks) {
  const auto model = tiny_model();
  AdamW one(*model, {}, type);
  set_shares(*model, 1, 1);
  one.collect_gradients();
  one.step(0.01);
  const auto weights = one.weights(), state = one.state();
  std::map<std::string, at::Tensor> weights_of_two, state_of_two;
  testing::run_ranks(2, [&](const distributed::World& world) {
    const auto other = tiny_model();
    AdamW shared(*other, {}, type, world, shard);
    shared.restore(weights, state, "one rank");
    EXPECT_TRUE(at::equal(other->parameters()[0], model->parameters()[0]));
    const auto shared_weights = shared.weights(), shared_state = shared.state();
    if (world.is_first()) {
      weights_of_two = shared_weights;
      state_of_two = shared_state;
    }
    auto fewer = weights;
    fewer.erase("model.norm.weight");
    EXPECT_TRUE(testing::throws<std::runtime_error>([&] { shared.restore(fewer, state, "here"); },
                                                    {"here", "'model.norm.weight' is missing"}));
  });
  EXPECT_TRUE(equal(weights_of_two, weights));
  EXPECT_TRUE(equal(state_of_two, state));
}

INSTANTIATE_TEST_SUITE_P(Types, SharedAdamW,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Bool()),
                         [](const auto& test) {
                           return c10::toString(std::get<0>(test.param)) +
                                  std::string(std::get<1>(test.param) ? "Sharded" : "Whole");
                         });

TEST(AdamW, ClipsTheNormOverAllRanks) {
  testing::run_ranks(2, [](const distributed::World& world) {
    const auto model = tiny_model();
    run::OptimizerRecipe recipe;
    recipe.max_grad_norm = 0.5;
    AdamW optimizer(*model, recipe, at::kFloat, world);
    const double all = std::sqrt(static_cast<double>(testing::count_parameters(*model)));
    set_gradients(*model, world.is_first() ? 3 : -1);
    optimizer.collect_gradients();
    optimizer.reduce_gradients();
    EXPECT_NEAR(optimizer.clip_gradients() / (2 * all), 1, 1e-12);
    EXPECT_NEAR(optimizer.clip_gradients(), 0.5, 1e-6);
    optimizer.drop_gradients();
    set_gradients(*model, world.is_first() ? std::nan("") : 1);
    optimizer.collect_gradients();
    optimizer.reduce_gradients();
    EXPECT_TRUE(std::isnan(optimizer.clip_gradients()));
  });
}

}  // namespace
}  // namespace lighthouse::train
