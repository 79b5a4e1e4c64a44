#include "lighthouse/model/language_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/embedding.h>

#include <memory>
#include <string>
#include <vector>

#include "lighthouse/core/check.h"
#include "tests/model/support.h"
#include "tests/support/device.h"
#include "tests/support/small_model.h"
#include "tests/support/throws.h"

namespace lighthouse::model {
namespace {

using at::Tensor;
using testing::device;
using testing::lighthouse_plan;
using testing::max_difference;
using testing::random_tokens;
using testing::throws;

std::shared_ptr<LanguageModel> small_model() {
  auto model = new_model(testing::small_model(3));
  model->to(device());
  return model;
}

Tensor integers(std::initializer_list<std::initializer_list<int64_t>> rows,
                at::ScalarType type = at::kLong) {
  std::vector<Tensor> all;
  for (const auto& row : rows) all.push_back(at::tensor(std::vector<int64_t>(row), at::kLong));
  return at::stack(all).to(device(), type);
}

std::vector<nn::AttentionImpl*> attentions(LanguageModel& model) {
  std::vector<nn::AttentionImpl*> found;
  for (const auto& module : model.modules()) {
    if (auto* attention = module->as<nn::AttentionImpl>()) found.push_back(attention);
  }
  return found;
}

/// As small a kind of model as there can be: a token's successor depends on it alone.
class Bigram : public LanguageModel {
 public:
  explicit Bigram(int64_t vocabulary)
      : embedding_(register_module("embedding", torch::nn::Embedding(vocabulary, 4))),
        output_(register_parameter("output", at::randn({vocabulary, 4}))) {}

  void reserve_context(int64_t /*tokens*/) override {}
  void set_recompute_mlp(bool /*on*/) override {}
  void set_recompute_layers(bool /*on*/) override {}

 protected:
  Tensor hidden(const data::Batch& batch) override { return embedding_(batch.tokens); }
  Tensor output_weight() const override { return output_; }
  std::vector<nn::Attention> attentions() const override { return {}; }

 private:
  torch::nn::Embedding embedding_;
  Tensor output_;
};

TEST(LanguageModel, NeedsOfAKindNoMoreThanItsHiddenStatesAndItsOutput) {
  at::manual_seed(1);
  const auto model = std::make_shared<Bigram>(7);
  model->to(device());
  const auto weights = model->weights();
  ASSERT_EQ(weights.size(), 2u);
  const Tensor table = at::mm(weights.at("embedding.weight"), weights.at("output").t());
  const Tensor tokens = integers({{3, 0, 6}, {1, 1, 5}}),
               targets = integers({{0, 6, 2}, {1, 5, 4}});
  const Tensor expected = table.index_select(0, tokens.flatten()).view({2, 3, 7});
  EXPECT_LE(max_difference(model->logits({tokens}), expected), 1e-5);
  const Tensor losses = model->token_losses({tokens, targets});
  EXPECT_LE(max_difference(losses, at::cross_entropy_loss(expected.transpose(1, 2), targets, {},
                                                          at::Reduction::None)),
            1e-5);
  EXPECT_EQ(model->vocabulary(), 7);
  EXPECT_EQ(model->device().type(), device().type());
  // What is given is the parameter itself.
  weights.at("output").zero_();
  EXPECT_EQ(model->logits({tokens}).abs().max().item<float>(), 0);
}

TEST(LanguageModel, LossesAreThoseOfItsLogits) {
  at::manual_seed(2);
  const auto model = small_model();
  const Tensor tokens = random_tokens(3, 21, device()), targets = random_tokens(3, 21, device());
  const Tensor losses = model->token_losses({tokens, targets});
  EXPECT_EQ(losses.sizes(), tokens.sizes());
  const Tensor plain = at::cross_entropy_loss(model->logits({tokens}).transpose(1, 2), targets, {},
                                              at::Reduction::None);
  EXPECT_LE(max_difference(losses, plain), 1e-5);
}

TEST(LanguageModel, SetsTheAttentionOfEachLayer) {
  const auto model = small_model();
  for (const auto* attention : attentions(*model)) {
    EXPECT_EQ(attention->options().mode, nn::Mode::kDense);
  }
  AttentionPlan plan = lighthouse_plan();
  plan.dense_layers = {0, -1};
  model->set_attention(plan);
  const auto found = attentions(*model);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0]->options().mode, nn::Mode::kDense);
  EXPECT_EQ(found[1]->options().mode, nn::Mode::kLighthouse);
  EXPECT_EQ(found[2]->options().mode, nn::Mode::kDense);
  EXPECT_EQ(found[1]->options().config, plan.config);
  EXPECT_TRUE(found[1]->uses_lighthouse(512));
  EXPECT_FALSE(found[1]->uses_lighthouse(16));
}

TEST(LanguageModel, ShiftsThePiecesOfEverySecondLayer) {
  const auto model = small_model();
  AttentionPlan plan = lighthouse_plan();
  plan.config.local = 64;
  model->set_attention(plan);
  std::vector<int64_t> shifts;
  for (const auto* attention : attentions(*model)) {
    shifts.push_back(attention->options().config.local_shift);
  }
  EXPECT_EQ(shifts, (std::vector<int64_t>{0, 32, 0}));
}

TEST(LanguageModel, EvaluatesDenselyUnlessTold) {
  at::manual_seed(6);
  const auto model = small_model();
  const Tensor tokens = random_tokens(1, 512, device());
  const Tensor dense = model->logits({tokens});
  model->set_attention(lighthouse_plan());
  const Tensor lighthouse = model->logits({tokens});
  EXPECT_FALSE(at::equal(lighthouse, dense));
  model->eval();
  EXPECT_TRUE(at::equal(model->logits({tokens}), dense));
  model->set_lighthouse_in_eval(true);
  EXPECT_TRUE(at::equal(model->logits({tokens}), lighthouse));
  model->set_attention(lighthouse_plan());
  EXPECT_TRUE(at::equal(model->logits({tokens}), lighthouse));
  model->set_lighthouse_in_eval(false);
  EXPECT_TRUE(at::equal(model->logits({tokens}), dense));
}

TEST(LanguageModel, TakesThePositionsOfABatch) {
  at::manual_seed(7);
  const auto model = small_model();
  model->to(at::kDouble);
  const int64_t length = 12;
  const Tensor tokens = random_tokens(2, length, device()),
               targets = random_tokens(2, length, device());
  const auto losses = [&](const Tensor& positions) {
    return model->token_losses({.tokens = tokens, .targets = targets, .positions = positions});
  };
  const Tensor plain = losses({});
  const Tensor counted = at::arange(length, at::kLong).to(device()).expand({2, length});
  EXPECT_TRUE(at::equal(losses(counted), plain));
  // Only the distances between positions matter; angles are float32's.
  EXPECT_LE(max_difference(losses(counted + 100), plain), 1e-4);
  Tensor parted = counted.clone();
  parted[1].slice(0, length / 2).add_(1000);
  const Tensor of_parted = losses(parted);
  EXPECT_TRUE(at::equal(of_parted[0], plain[0]));
  EXPECT_TRUE(at::equal(of_parted[1].slice(0, 0, length / 2), plain[1].slice(0, 0, length / 2)));
  EXPECT_GT(max_difference(of_parted[1], plain[1]), 1e-3);
  EXPECT_TRUE(
      at::equal(model->logits({.tokens = tokens, .positions = counted}), model->logits({tokens})));

  ModelConfig config = testing::small_model(1);
  config.rope_scaling.type = RopeType::kDynamic;
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { new_model(config)->logits({.tokens = tokens.cpu(), .positions = counted.cpu()}); },
      {"has positions and rope_type is 'dynamic'"}));
}

/// In a row of 512 tokens: one of many, one of one, and one longer than a piece.
const std::vector<int64_t> kLengths{150, 1, 40, 321};

/// A row of such documents, whose tokens are of the parts of the vocabulary 0 to 63, 64 to 127, ...
data::Batch packed_documents() {
  std::vector<int64_t> starts;
  std::vector<Tensor> tokens, places, targets;
  int64_t begin = 0;
  for (size_t i = 0; i < kLengths.size(); ++i) {
    starts.push_back(begin);
    begin += kLengths[i];
    tokens.push_back(at::randint(64, {1, kLengths[i]}, at::kLong) + static_cast<int64_t>(64 * i));
    places.push_back(at::arange(kLengths[i], at::kLong).unsqueeze(0));
    targets.push_back(
        at::cat({tokens.back().slice(1, 1), at::full({1, 1}, data::kNoTarget, at::kLong)}, 1));
  }
  starts.resize(6, begin);
  return data::Batch{at::cat(tokens, 1), at::cat(targets, 1), at::cat(places, 1),
                     at::tensor(starts, at::kInt).unsqueeze(0)}
      .to(device());
}

AttentionPlan plan_of(nn::Mode mode, int64_t local) {
  AttentionPlan plan = lighthouse_plan();
  plan.mode = mode;
  plan.config.local = local;
  return plan;
}

/// Dense, and in pieces that cut no document.
TEST(LanguageModel, ComputesPackedDocumentsAsEachAlone) {
  at::manual_seed(8);
  const auto model = small_model();
  model->to(at::kDouble);
  const data::Batch row = packed_documents();
  for (const AttentionPlan& plan : {AttentionPlan(), plan_of(nn::Mode::kLocal, 1024)}) {
    model->set_attention(plan);
    const auto results = [&](const std::vector<data::Batch>& batches) {
      model->zero_grad();
      std::vector<Tensor> all;
      for (const data::Batch& batch : batches) {
        all.push_back(model->token_losses(batch));
        all.back().sum().backward();
      }
      std::vector<Tensor> found{at::cat(all, 1).detach()};
      for (const Tensor& parameter : model->parameters()) found.push_back(parameter.grad().clone());
      return found;
    };
    std::vector<data::Batch> alone;
    int64_t begin = 0;
    for (const int64_t length : kLengths) {
      alone.push_back({row.tokens.narrow(1, begin, length), row.targets.narrow(1, begin, length)});
      begin += length;
    }
    const auto found = results({row}), expected = results(alone);
    EXPECT_LE(max_difference(found[0], expected[0]), 1e-12);
    for (size_t i = 1; i < found.size(); ++i) {
      EXPECT_LE(testing::relative_error(found[i], expected[i]), 1e-11) << i;
    }
    data::Batch across = row;
    across.document_starts.reset();
    EXPECT_GT(max_difference(model->token_losses(across).detach(), expected[0]), 1e-3);
  }
}

/// A document's losses have no gradient with respect to what only others hold: selection, which
/// they share, has none.
TEST(LanguageModel, KeepsPackedDocumentsApartInEveryMode) {
  at::manual_seed(9);
  const auto model = small_model();
  const data::Batch row = packed_documents();
  for (const AttentionPlan& plan :
       {AttentionPlan(), plan_of(nn::Mode::kLocal, 64), plan_of(nn::Mode::kLighthouse, 64)}) {
    model->set_attention(plan);
    const auto reaches = [&](const data::Batch& batch) {
      model->zero_grad();
      model->token_losses(batch).slice(1, 191).sum().backward();  // of the last document
      const Tensor grad = model->named_parameters()["model.embed_tokens.weight"].grad();
      EXPECT_GT(grad.slice(0, 192).abs().max().item<double>(), 0);
      return grad.slice(0, 0, 192).abs().max().item<double>() > 0;
    };
    EXPECT_FALSE(reaches(row)) << to_string(plan.mode);
    data::Batch across = row;
    across.document_starts.reset();
    EXPECT_TRUE(reaches(across)) << to_string(plan.mode);
  }
}

TEST(LanguageModel, NamesDocumentStartsThatAreWrong) {
  const auto model = small_model();
  const Tensor tokens = random_tokens(2, 5, device());
  const auto logits = [&](const Tensor& starts) {
    return model->logits({.tokens = tokens, .document_starts = starts});
  };
  EXPECT_LE(
      max_difference(logits(integers({{0, 5, 5}, {0, 5, 5}}, at::kInt)), model->logits({tokens})),
      1e-5);
  const auto refuses = [&](const Tensor& starts, const std::string& what) {
    return throws<std::invalid_argument>([&] { logits(starts); }, {what});
  };
  EXPECT_TRUE(refuses(integers({{0}, {0}}),
                      "document_starts are Long of shape [2, 1]; they must "
                      "be Int of shape (2, documents)"));
  EXPECT_TRUE(refuses(integers({{0}}, at::kInt), "document_starts are Int of shape [1, 1]"));
  EXPECT_TRUE(refuses(integers({{0}, {0}}, at::kInt).narrow(1, 0, 0), "of shape [2, 0]"));
  if (device().is_cpu()) {
    EXPECT_TRUE(throws<c10::ValueError>(
        [&] {
          logits(integers({{0}, {2}}, at::kInt));
        },
        {"document_starts[1][0] is 2"}));
  }
}

TEST(LanguageModel, NamesWhatIsWrong) {
  const auto model = small_model();
  const auto refuses = [](const auto& act, const std::string& what) {
    return throws<std::invalid_argument>(act, {what});
  };
  AttentionPlan plan = lighthouse_plan();
  for (const int64_t layer : {3, -4}) {
    plan.dense_layers = {layer};
    EXPECT_TRUE(
        refuses([&] { model->set_attention(plan); },
                message("dense layer ", layer, " does not exist; it must be from -3 to 2")));
  }
  const Tensor tokens = random_tokens(1, 4, device());
  EXPECT_TRUE(refuses([&] { model->logits({tokens.to(at::kFloat)}); },
                      "tokens are Float of shape [1, 4]; they must be Long of shape (batch, "
                      "tokens), with one token or more"));
  EXPECT_TRUE(refuses([&] { model->logits({tokens[0]}); },
                      "tokens are Long of shape [4]; they must be Long of shape (batch, tokens), "
                      "with one token or more"));
  EXPECT_TRUE(refuses(
      [&] {
        model->token_losses({tokens, tokens.slice(1, 1)});
      },
      "targets are Long of shape [1, 3]; they must be Long of the tokens' shape, "
      "[1, 4]"));
  EXPECT_TRUE(refuses([&] { model->token_losses({tokens}); }, "the batch has no targets"));
  EXPECT_TRUE(refuses([&] { model->logits({.tokens = tokens, .positions = tokens[0]}); },
                      "positions are Long of shape [4]; they must be Long of the tokens' shape, "
                      "[1, 4]"));
}

}  // namespace
}  // namespace lighthouse::model
