#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "lighthouse/data/batch.h"
#include "lighthouse/model/llama.h"
#include "tests/distributed/ranks.h"
#include "tests/support/small_model.h"
#include "tests/support/threads.h"

/// A model over sequences that ranks share: the losses and gradients of one process.
namespace lighthouse::model {
namespace {

using at::Tensor;
using distributed::Exchange;
using distributed::World;

constexpr int64_t kTokens = 512;

data::Batch random_batch() {
  const Tensor text = at::randint(0, 256, {2, kTokens + 1}, at::kLong);
  return {.tokens = text.narrow(1, 0, kTokens), .targets = text.narrow(1, 1, kTokens)};
}

/// Of the sum of the losses.
std::map<std::string, Tensor> gradients_of(Llama& model, const data::Batch& batch) {
  model->zero_grad();
  model->token_losses(batch).sum().backward();
  std::map<std::string, Tensor> gradients;
  for (const auto& parameter : model->named_parameters()) {
    gradients[parameter.key()] = parameter.value().grad().clone();
  }
  return gradients;
}

/// Within float64's rounding of sums over the tokens.
void expect_close(const Tensor& ours, const Tensor& expected, const std::string& name) {
  const double error = ((ours - expected).abs().max() / expected.abs().max()).item<double>();
  EXPECT_LE(error, 1e-12) << name;
}

struct Way {
  nn::Mode mode;
  Exchange exchange;
  bool zigzag;
};

TEST(ContextParallel, ModelsHaveTheLossesAndGradientsOfOneProcess) {
  const testing::Threads one(1);
  at::manual_seed(0);
  const ModelConfig config = testing::small_model(2);
  const data::Batch batch = random_batch();
  Llama reference(config);
  reference->to(at::kDouble);
  for (const int64_t ranks : {2, 4}) {  // four have copies of the two key/value heads
    std::deque<Llama> models;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      Llama& model = models.emplace_back(config);
      model->to(at::kDouble);
      const at::NoGradGuard no_grad;
      for (const auto& [name, weight] : model->weights())
        weight.copy_(reference->weights().at(name));
    }
    for (const auto& way : {Way{nn::Mode::kDense, Exchange::kGather, true},
                            Way{nn::Mode::kDense, Exchange::kRing, true},
                            Way{nn::Mode::kLighthouse, Exchange::kHeads, true},
                            Way{nn::Mode::kLocal, Exchange::kHeads, false}}) {
      SCOPED_TRACE(::testing::Message() << ranks << " ranks, " << to_string(way.mode) << ", "
                                        << to_string(way.exchange));
      AttentionPlan plan = testing::lighthouse_plan();
      plan.mode = way.mode;
      plan.config.local = 64;
      reference->set_attention(plan);
      const Tensor losses = reference->token_losses(batch).detach();
      const auto gradients = gradients_of(reference, batch);
      testing::run_ranks(ranks, [&](const World& world) {
        AttentionPlan shared = plan;
        shared.context = {.group = world.group(), .exchange = way.exchange, .zigzag = way.zigzag};
        Llama& model = models[world.rank()];
        model->set_attention(shared);
        expect_close(model->whole_token_losses(batch), losses, "losses");
        for (const auto& [name, gradient] : gradients_of(model, model->part_of(batch))) {
          world.sum(gradient);
          expect_close(gradient, gradients.at(name), name);
        }
      });
    }
  }
}

}  // namespace
}  // namespace lighthouse::model
