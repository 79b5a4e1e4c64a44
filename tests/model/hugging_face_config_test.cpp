#include "lighthouse/model/hugging_face_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "lighthouse/io/file.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::model {
namespace {

using nlohmann::json;
using testing::throws;

/// A config.json of a small Llama, changed.
json small(const json& change = json::object()) {
  json config{{"model_type", "llama"},      {"vocab_size", 65},
              {"hidden_size", 32},          {"intermediate_size", 48},
              {"num_hidden_layers", 1},     {"num_attention_heads", 4},
              {"num_key_value_heads", 2},   {"max_position_embeddings", 512},
              {"tie_word_embeddings", true}};
  config.update(change);
  return config;
}

class ConfigJson : public ::testing::Test {
 protected:
  ModelConfig read(const json& config) { return read(config.dump()); }
  ModelConfig read(const std::string& text) {
    io::write_atomically(folder_ / "config.json", text);
    return read_config(folder_.path());
  }
  /// What is exported of what is read.
  json exported(const json& config) {
    const ModelConfig read_one = read(config);
    return json::parse(to_config_json(read_one, read_one.rope_scaling.original_context, -1));
  }
  std::string path() const { return folder_.path().string(); }

  testing::Folder folder_;
};

TEST_F(ConfigJson, TakesWhatTransformersTakesForKeysThatAreNotThere) {
  const json all = json::parse(io::read_file(GOLDEN_FOLDER "/defaults.json"));
  ASSERT_EQ(all.size(), kWords<ModelType>.size());
  for (const auto& [type, defaults] : all.items()) {
    json config{{"model_type", type}};
    if (type == "mistral") config["sliding_window"] = nullptr;
    const json given = exported(config);
    for (const auto& [key, value] : defaults.items()) EXPECT_EQ(given.at(key), value) << key;
  }
  const json of_heads = small({{"num_key_value_heads", nullptr}, {"num_attention_heads", 8}});
  EXPECT_EQ(read(of_heads).num_key_value_heads, 8);
  EXPECT_EQ(read(of_heads).head_dim, 4);
}

TEST_F(ConfigJson, ReadsRopeScalingAsTransformersDoes) {
  const auto scaling = [&](const json& change) { return read(small(change)).rope_scaling; };
  json llama3{
      {"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}, {"high_freq_factor", 4}};
  EXPECT_EQ(scaling({{"rope_scaling", llama3}}).original_context, 512);
  llama3["original_max_position_embeddings"] = 64.0;
  EXPECT_EQ(scaling({{"rope_scaling", llama3}}).original_context, 64);
  EXPECT_EQ(scaling({{"rope_scaling", llama3}, {"original_max_position_embeddings", 32}})
                .original_context,
            32);
  // The older of two tables, by its older key; an empty one is none.
  const json linear{{"type", "linear"}, {"factor", 2}, {"rope_theta", 3}};
  EXPECT_EQ(scaling({{"rope_scaling", linear}, {"rope_parameters", llama3}}).type,
            RopeType::kLinear);
  EXPECT_EQ(scaling({{"rope_scaling", json::object()}, {"rope_parameters", llama3}}).type,
            RopeType::kLlama3);
  EXPECT_EQ(read(small({{"rope_scaling", linear}, {"rope_theta", 5}})).rope_theta, 3);
  EXPECT_EQ(read(small({{"rope_scaling", llama3}, {"rope_theta", 5}})).rope_theta, 5);

  json yarn{{"rope_type", "yarn"}, {"factor", 4}};
  // Without an attention factor, that of any factor that is set later.
  RopeScaling expected{RopeType::kYarn, 4, 1, 32, 512, 0, true};
  EXPECT_EQ(scaling({{"rope_scaling", yarn}}), expected);
  EXPECT_EQ(expected.amplitude(), 1 + 0.1 * std::log(4.0));
  yarn.update({{"factor", nullptr},
               {"original_max_position_embeddings", 256},
               {"beta_fast", 16},
               {"beta_slow", 2},
               {"mscale", 2},
               {"mscale_all_dim", 0.5},
               {"truncate", false}});
  const double log = 0.1 * std::log(2.0);
  expected = {RopeType::kYarn, 2, 2, 16, 256, (1 + 2 * log) / (1 + 0.5 * log), false};
  EXPECT_EQ(scaling({{"rope_scaling", yarn}}), expected);
  yarn["attention_factor"] = 1.5;
  EXPECT_EQ(scaling({{"rope_scaling", yarn}}).attention_factor, 1.5);
}

TEST_F(ConfigJson, GivesBackWhatItRead) {
  const auto expect_same = [&](const json& change) {
    const ModelConfig config = read(small(change));
    EXPECT_EQ(read(to_config_json(config, 4096, -1)), config) << change;
  };
  const auto turns = [](const char* type) {
    return json{{"rope_type", type},
                {"factor", 8},
                {"low_freq_factor", 1},
                {"high_freq_factor", 4},
                {"beta_fast", 16},
                {"attention_factor", 0.7},
                {"original_max_position_embeddings", 64}};
  };
  expect_same({{"max_position_embeddings", 4096}});
  expect_same({{"attention_bias", true}, {"max_position_embeddings", 4096}});
  expect_same({{"mlp_bias", true}, {"max_position_embeddings", 4096}});
  expect_same(
      {{"model_type", "mistral"}, {"sliding_window", nullptr}, {"max_position_embeddings", 4096}});
  expect_same({{"model_type", "qwen2"}, {"max_position_embeddings", 4096}});
  expect_same({{"rope_scaling", turns("llama3")}});
  expect_same({{"rope_scaling", turns("yarn")}});
  expect_same({{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}}});
  expect_same({{"rope_scaling", turns("linear")}, {"max_position_embeddings", 4096}});
  // It scales by max_position_embeddings, which is what it was whatever was trained on.
  expect_same({{"rope_scaling", turns("dynamic")}});
}

TEST_F(ConfigJson, RefusesModelsOfOtherKinds) {
  const auto refuses = [&](const json& change, const std::string& what) {
    return throws<std::runtime_error>([&] { read(small(change)); },
                                      {message("'", path(), "/config.json'"), what});
  };
  EXPECT_TRUE(refuses({{"model_type", "gpt2"}},
                      "model_type is 'gpt2'; it must be 'llama', 'mistral' or 'qwen2'"));
  EXPECT_TRUE(refuses({{"hidden_act", "gelu"}}, "has hidden_act = \"gelu\"; it must be \"silu\""));
  EXPECT_EQ(read(small({{"hidden_act", "swish"}})), read(small()));
  EXPECT_TRUE(refuses({{"attention_dropout", 0.1}}, "attention_dropout = 0.1; it must be 0.0"));
  EXPECT_TRUE(refuses({{"quantization_config", json::object()}}, "it must be null"));
  EXPECT_TRUE(
      refuses({{"rope_scaling", {{"rope_type", "longrope"}}}},
              "rope_type is 'longrope'; it must be 'default', 'linear', 'dynamic', 'yarn' or "
              "'llama3'"));
  for (const char* type : {"linear", "dynamic", "yarn", "llama3"}) {
    EXPECT_TRUE(refuses({{"rope_scaling", {{"rope_type", type}}}},
                        message("has no factor; rope_type \"", type, "\" needs one")));
  }
  EXPECT_TRUE(refuses({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}}},
                      "has no low_freq_factor"));
  EXPECT_TRUE(refuses({{"rope_parameters", {{"full_attention", {{"rope_theta", 5}}}}}},
                      "has full_attention = {\"rope_theta\":5}; it must be a number"));
  EXPECT_TRUE(
      refuses({{"partial_rotary_factor", 0.5}}, "partial_rotary_factor = 0.5; it must be 1"));
  EXPECT_TRUE(refuses({{"layer_types", {"sliding_attention"}}},
                      "layer_types = \"sliding_attention\"; it must be \"full_attention\""));
  EXPECT_TRUE(
      refuses({{"num_key_value_heads", 3}}, "num_attention_heads is 4; it must be a multiple"));
}

TEST_F(ConfigJson, RefusesWindows) {
  const auto refuses = [&](const json& change, const std::string& what) {
    return throws<std::runtime_error>([&] { read(small(change)); }, {what, "has no window"});
  };
  json mistral = small({{"model_type", "mistral"}});
  EXPECT_TRUE(refuses(mistral, "has no sliding_window, which means 4096; it must be null"));
  mistral["sliding_window"] = 256;
  EXPECT_TRUE(refuses(mistral, "has sliding_window = 256; it must be null"));

  json qwen{{"model_type", "qwen2"}, {"sliding_window", 256}, {"max_window_layers", 0}};
  EXPECT_FALSE(read(small(qwen)).attention_bias);
  qwen["use_sliding_window"] = true;
  EXPECT_TRUE(refuses(qwen, "has use_sliding_window = true; it must be false"));
  qwen["max_window_layers"] = 1;
  EXPECT_TRUE(read(small(qwen)).qkv_bias());
}

TEST_F(ConfigJson, NamesWhatIsWrongWithAFile) {
  const auto refuses = [&](const json& change, const std::string& what) {
    return throws<std::runtime_error>([&] { read(small(change)); }, {what});
  };
  EXPECT_TRUE(
      refuses({{"vocab_size", "many"}}, "has vocab_size = \"many\"; it must be an integer"));
  EXPECT_TRUE(refuses({{"vocab_size", 1.5}}, "has vocab_size = 1.5; it must be an integer"));
  EXPECT_TRUE(refuses({{"vocab_size", true}}, "has vocab_size = true; it must be an integer"));
  EXPECT_TRUE(refuses({{"rms_norm_eps", "1e-5"}}, "it must be a number"));
  EXPECT_TRUE(refuses({{"tie_word_embeddings", 1}}, "it must be true or false"));
  EXPECT_TRUE(refuses({{"hidden_act", 1}}, "it must be a string"));
  EXPECT_TRUE(refuses({{"rope_scaling", 1}}, "it must be an object"));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read(std::string("{")); },
                                         {"config.json' is not valid JSON: "}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read(std::string("[]")); },
                                         {"config.json' is not a JSON object"}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_config("meta/llama"); },
                                         {"there is no folder 'meta/llama'", "hf download"}));
}

}  // namespace
}  // namespace lighthouse::model
