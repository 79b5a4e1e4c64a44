#include "lighthouse/eval/passkey.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "tests/distributed/ranks.h"
#include "tests/eval/support.h"
#include "tests/support/throws.h"

namespace lighthouse::eval {
namespace {

const std::string kQuestion = "\nThe pass key is ";

TEST(PasskeyPrompt, HidesADigitAtADepthAndAsksForIt) {
  for (const int64_t context : {100, 101, 4096}) {
    for (const double depth : {0.0, 0.3, 1.0}) {
      const auto [text, digit] = passkey_prompt({context, depth, 1, 5}, 3);
      ASSERT_EQ(static_cast<int64_t>(text.size()), context);
      EXPECT_TRUE(text.ends_with(kQuestion));
      const std::string key = kQuestion + std::to_string(digit) + ". Remember it.\n";
      const size_t at = text.find(key);
      ASSERT_NE(at, std::string::npos) << text;
      const size_t free = text.size() - key.size() - kQuestion.size();
      EXPECT_EQ(at, static_cast<size_t>(std::llround(depth * static_cast<double>(free))));
      const std::string filler = text.substr(0, at) + text.substr(at + key.size(), free - at);
      EXPECT_TRUE(std::all_of(filler.begin(), filler.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == ' ';
      })) << filler;
    }
  }
}

TEST(PasskeyPrompt, IsAFunctionOfTaskAndTrial) {
  const PasskeyTask task{256, 0.5, 1, 7};
  EXPECT_EQ(passkey_prompt(task, 2).text, passkey_prompt(task, 2).text);
  EXPECT_NE(passkey_prompt(task, 2).text, passkey_prompt(task, 3).text);
  EXPECT_NE(passkey_prompt(task, 2).text, passkey_prompt({256, 0.5, 1, 8}, 2).text);
  std::set<int> digits;
  for (int64_t trial = 0; trial < 100; ++trial) digits.insert(passkey_prompt(task, trial).digit);
  EXPECT_EQ(digits.size(), 10u);
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [] {
        passkey_prompt({40, 0, 1}, 0);
      },
      {"context is 40", "at least 50"}));
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [] {
        passkey_prompt({100, 1.5, 1}, 0);
      },
      {"depth is 1.5", "from 0 to 1"}));
}

TEST(PasskeysFound, CountsTheTrialsWhoseDigitHasTheLargestLogit) {
  at::manual_seed(3);
  model::Llama model(small_config());
  model->set_attention(plan_of(SelectionRule::kPublished));
  const PasskeyTask task{300, 0.4, 30, 1};
  for (const bool as_trained : {false, true}) {
    int64_t expected = 0;
    {
      const at::NoGradGuard no_grad;
      model->eval();
      model->set_lighthouse_in_eval(as_trained);
      for (int64_t trial = 0; trial < task.trials; ++trial) {
        const auto [text, digit] = passkey_prompt(task, trial);
        std::vector<int64_t> ids(text.begin(), text.end());
        const at::Tensor logits = model->logits({at::tensor(ids, at::kLong).unsqueeze(0)})[0][-1];
        bool largest = true;
        for (int other = 0; other < 10; ++other) {
          largest &= logits['0' + digit].item<float>() >= logits['0' + other].item<float>();
        }
        expected += largest ? 1 : 0;
      }
      model->set_lighthouse_in_eval(false);
      model->train();
    }
    EXPECT_EQ(passkeys_found(*model, task, as_trained), expected);
    EXPECT_TRUE(model->is_training());
  }
  // Whatever the prompt says, this one answers with the same digit.
  const at::NoGradGuard no_grad;
  for (auto& parameter : model->named_parameters()) {
    if (parameter.key() == "lm_head.weight") parameter.value().fill_(0);
  }
  int64_t zeros = 0;
  for (int64_t trial = 0; trial < task.trials; ++trial) {
    zeros += passkey_prompt(task, trial).digit == 0 ? 1 : 0;
  }
  EXPECT_EQ(passkeys_found(*model, task, false), zeros);

  model::ModelConfig words = small_config();
  words.vocab_size = 300;
  model::Llama other(words);
  EXPECT_TRUE(testing::throws<std::invalid_argument>([&] { passkeys_found(*other, task, false); },
                                                     {"vocabulary of 300", "256"}));
}

TEST(PasskeysFound, RanksCountThoseOfAll) {
  at::manual_seed(3);
  const auto config = small_config();
  model::Llama model(config);
  const PasskeyTask task{64, 0.4, 31, 1};
  const int64_t expected = passkeys_found(*model, task, false);
  auto models = copies_of(model, config, 4);
  testing::run_ranks(4, [&](const distributed::World& world) {
    auto& own = models[world.rank()];
    EXPECT_EQ(passkeys_found(*own, task, false, {world, {}}), expected);
    const auto mesh = distributed::Mesh::of(world, 2);
    model::AttentionPlan plan;
    plan.context = {.group = mesh.context.group(), .zigzag = true};
    own->set_attention(plan);
    EXPECT_EQ(passkeys_found(*own, task, false, mesh), expected);
  });
}

}  // namespace
}  // namespace lighthouse::eval
