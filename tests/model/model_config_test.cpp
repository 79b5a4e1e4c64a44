#include "lighthouse/model/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>

namespace lighthouse::model {
namespace {

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelConfig, NamesTheFieldThatIsOutOfRange) {
  const auto error = [](auto change) {
    ModelConfig config;
    change(config);
    return error_of([&] { config.validate(); });
  };
  EXPECT_EQ(error([](ModelConfig&) {}), "no error");
  EXPECT_EQ(error([](ModelConfig& c) { c.hidden_size = 0; }),
            "hidden_size is 0; it must be above 0");
  EXPECT_EQ(error([](ModelConfig& c) { c.vocab_size = 1; }),
            "vocab_size is 1; it must be 2 or more");
  EXPECT_EQ(error([](ModelConfig& c) { c.num_key_value_heads = 3; }),
            "num_attention_heads is 4; it must be a multiple of num_key_value_heads, 3");
  EXPECT_EQ(error([](ModelConfig& c) { c.head_dim = 7; }),
            "head_dim is 7; it must be even and above 0");
  EXPECT_EQ(error([](ModelConfig& c) { c.rope_theta = std::nan(""); }),
            "rope_theta is nan; it must be above 0");
  EXPECT_EQ(error([](ModelConfig& c) { c.initializer_range = 1.5; }),
            "initializer_range is 1.5; it must be above 0 and at most 1");
}

TEST(ModelConfig, RefusesWhatTransformersWouldNotLoad) {
  ModelConfig config;
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

TEST(ModelConfig, RefusesScalingThatIsNone) {
  const auto error = [](auto change) {
    ModelConfig config;
    change(config, config.rope_scaling);
    return error_of([&] { config.validate(); });
  };
  EXPECT_EQ(error([](ModelConfig&, RopeScaling& s) { s.factor = 8; }),
            "rope_scaling_factor is 8; it must be 1 where rope_type is 'default', which does not "
            "scale");
  EXPECT_EQ(error([](ModelConfig&, RopeScaling& s) {
              s.type = RopeType::kLlama3;
              s.low_frequency = 5;
            }),
            "rope_high_frequency is 4; it must be above rope_low_frequency, 5");
  EXPECT_EQ(error([](ModelConfig& c, RopeScaling& s) {
              s.type = RopeType::kDynamic;
              c.head_dim = 2;
            }),
            "head_dim is 2; it must be above 2 where rope_type is 'dynamic'");
  EXPECT_EQ(error([](ModelConfig& c, RopeScaling& s) {
              s.type = RopeType::kYarn;
              c.rope_theta = 1;
            }),
            "rope_theta is 1; it must be above 1 where rope_type is 'yarn'");
}

}  // namespace
}  // namespace lighthouse::model
