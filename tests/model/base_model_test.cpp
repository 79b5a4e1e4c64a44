#include "lighthouse/model/base_model.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lighthouse/io/file.h"
#include "lighthouse/model/hugging_face_config.h"
#include "tests/support/folder.h"

namespace lighthouse::model {
namespace {

/// The original context of rotary embedding, which some files have beside the table of its scaling:
/// transformers prefers it.
TEST(MergeConfig, LeavesNoOtherWordForWhatItSays) {
  const testing::Folder folder;
  io::write_atomically(folder / "config.json",
                       R"({"original_max_position_embeddings": 64, "rope_scaling": {"factor": 2},
                           "eos_token_id": [2, 7], "max_position_embeddings": 64, "kept": 1})");
  ModelConfig config;
  config.rope_scaling = {.type = RopeType::kYarn, .factor = 4, .original_context = 32};
  const auto merged =
      nlohmann::json::parse(merge_config(folder.path(), to_config_json(config, 128, -1)));
  EXPECT_FALSE(merged.contains("original_max_position_embeddings"));
  EXPECT_EQ(merged.at("rope_parameters").at("original_max_position_embeddings"), 32);
  EXPECT_EQ(merged.at("rope_scaling"), merged.at("rope_parameters"));
  EXPECT_EQ(merged.at("max_position_embeddings"), 128);
  EXPECT_EQ(merged.at("eos_token_id"), nlohmann::json({2, 7}));
  EXPECT_EQ(merged.at("kept"), 1);
}

}  // namespace
}  // namespace lighthouse::model
