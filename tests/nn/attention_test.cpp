#include "lighthouse/nn/attention.h"

#include <ATen/ops/randn.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <sstream>
#include <vector>

#include "lighthouse/ops/attention.h"
#include "tests/support/device.h"
#include "tests/support/throws.h"

namespace lighthouse::nn {
namespace {

using at::Tensor;
using testing::throws;

/// Collects what is warned of while it lives.
class Warnings : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }

  std::vector<std::string> messages;

 private:
  c10::WarningUtils::WarningHandlerGuard guard_{this};
};

Config small_config() {
  Config config;
  config.levels = 3;
  config.pooling_factor = 4;
  config.budget = config.tile_budget = 4;
  return config;
}

/// 256 tokens, of which 16 + 2 x 4 x 4 = 48 rows are gathered.
struct Inputs {
  Tensor q = at::randn({1, 4, 256, 8}, testing::device());
  Tensor k = at::randn({1, 2, 256, 8}, testing::device());
  Tensor v = at::randn({1, 2, 256, 8}, testing::device());

  Tensor dense(const std::optional<double>& scale = {}) const {
    return dense_attention(q, k, v, scale);
  }
  Tensor lighthouse(const Config& config) const { return attention(q, k, v, config); }
};

Attention module_of(Mode mode, const Config& config = small_config()) {
  AttentionOptions options;
  options.config = config;
  options.mode = mode;
  return Attention(options);
}

TEST(AttentionModule, HasNothingToLearnOrToStore) {
  const Attention module = module_of(Mode::kLighthouse);
  EXPECT_TRUE(module->parameters().empty());
  EXPECT_TRUE(module->buffers().empty());
}

TEST(AttentionModule, ComputesWhatItsModeSays) {
  const Inputs x;
  Attention module = module_of(Mode::kLighthouse);
  const Tensor lighthouse = x.lighthouse(small_config());
  ASSERT_FALSE(lighthouse.equal(x.dense()));
  EXPECT_TRUE(module->uses_lighthouse(256));
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(lighthouse));
  module->set_mode(Mode::kDense);
  EXPECT_FALSE(module->uses_lighthouse(256));
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense()));
  module->set_mode(Mode::kLighthouse);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(lighthouse));
}

TEST(AttentionModule, IsDenseInEvalModeUnlessTold) {
  const Inputs x;
  Attention module = module_of(Mode::kLighthouse);
  module->eval();
  EXPECT_FALSE(module->uses_lighthouse(256));
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense()));
  module->set_lighthouse_in_eval(true);
  EXPECT_TRUE(module->uses_lighthouse(256));
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.lighthouse(small_config())));
  module->set_mode(Mode::kDense);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense()));
}

TEST(AttentionModule, AttendsInsidePiecesAlone) {
  const Inputs x;
  Config config = small_config();
  config.local = 64;
  config.local_shift = 32;
  Attention module = module_of(Mode::kLocal, config);
  EXPECT_FALSE(module->uses_lighthouse(256));
  const Tensor local = module(x.q, x.k, x.v);
  EXPECT_TRUE(local.equal(local_attention(x.q, x.k, x.v, config)));
  EXPECT_FALSE(local.equal(x.lighthouse(config)));
  // Its first piece is that of dense attention, and no other.
  const auto is_dense = [&](int64_t begin, int64_t count) {
    return local.narrow(2, begin, count)
        .allclose(x.dense().narrow(2, begin, count), /*rtol=*/1e-3, /*atol=*/1e-3);
  };
  EXPECT_TRUE(is_dense(0, 32));
  EXPECT_FALSE(is_dense(32, 64));
  module->eval();
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense()));
  module->set_lighthouse_in_eval(true);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(local));
  EXPECT_TRUE(throws<c10::ValueError>([&] { module_of(Mode::kLocal)(x.q, x.k, x.v); },
                                      {"local is 0", "at least 1"}));
}

TEST(AttentionModule, EveryModeTakesTheScale) {
  const Inputs x;
  Config config = small_config();
  config.local = 32;
  config.scale = 0.1;
  Attention module = module_of(Mode::kDense, config);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense(0.1)));
  EXPECT_FALSE(x.dense(0.1).equal(x.dense()));
  module->set_mode(Mode::kLighthouse);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.lighthouse(config)));
  module->set_mode(Mode::kLocal);
  EXPECT_TRUE(module(x.q, x.k, x.v).equal(local_attention(x.q, x.k, x.v, config)));
}

/// The module is dense with these settings, and says so, with these words, once.
void expect_fallback(const AttentionOptions& options, const std::string& why) {
  const Inputs x;
  Attention module(options);
  Warnings warnings;
  EXPECT_FALSE(module->uses_lighthouse(256));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(module(x.q, x.k, x.v).equal(x.dense()));
  ASSERT_EQ(warnings.messages.size(), 1U);
  EXPECT_NE(warnings.messages[0].find(why), std::string::npos) << warnings.messages[0];
}

TEST(AttentionModule, FallsBackToDenseWhereLighthouseCannotPay) {
  AttentionOptions options;
  options.config = small_config();
  options.config.budget = options.config.tile_budget = 32;  // 16 + 4 x 16 + 4 x 32 = 208 rows
  EXPECT_TRUE(Attention(options)->uses_lighthouse(256));
  options.config.budget = options.config.tile_budget = 44;  // 16 + 4 x 16 + 4 x 44 = 256 rows
  expect_fallback(options, "256 rows for 256 tokens");

  options.config = small_config();
  options.config.tile_budget = 1;
  options.config.budget = 16;
  EXPECT_TRUE(Attention(options)->uses_lighthouse(256));
  options.config.budget = 17;
  expect_fallback(options, "budget of 17");
}

TEST(AttentionModule, SaysNothingWhereItWasAskedToBeDense) {
  const Inputs x;
  AttentionOptions options;  // the paper's settings, far too large for 256 tokens
  options.mode = Mode::kDense;
  Attention module(options);
  Warnings warnings;
  module(x.q, x.k, x.v);
  module->set_mode(Mode::kLighthouse);
  module->eval();
  module(x.q, x.k, x.v);
  EXPECT_TRUE(warnings.messages.empty());
}

TEST(AttentionModule, GradientsFlowInBothModes) {
  const Inputs x;
  for (const Mode mode : {Mode::kDense, Mode::kLighthouse}) {
    const Tensor q = x.q.clone().requires_grad_();
    module_of(mode)(q, x.k, x.v).sum().backward();
    EXPECT_GT(q.grad().abs().max().item<double>(), 0);
  }
}

TEST(AttentionModule, RefusesSettingsThatAreOutOfRange) {
  Config config = small_config();
  config.levels = 0;
  EXPECT_TRUE(
      throws<std::invalid_argument>([&] { module_of(Mode::kDense, config); }, {"levels is 0"}));
  Attention module = module_of(Mode::kLighthouse);
  EXPECT_TRUE(throws<std::invalid_argument>([&] { module->set_config(config); }, {"levels is 0"}));
  EXPECT_EQ(module->options().config, small_config());
}

TEST(AttentionModule, PrintsItsSettings) {
  std::ostringstream out;
  module_of(Mode::kLighthouse)->pretty_print(out);
  for (const char* part :
       {"lighthouse", "levels=3", "pooling_factor=4", "budget=4", "norm", "published"})
    EXPECT_NE(out.str().find(part), std::string::npos) << out.str();
}

}  // namespace
}  // namespace lighthouse::nn
