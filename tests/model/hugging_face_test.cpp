#include "lighthouse/model/hugging_face.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::model {
namespace {

using testing::throws;

class Weights : public ::testing::Test {
 protected:
  std::map<std::string, at::Tensor> weights(bool tied) {
    return read_weights(folder_.path(), tied);
  }
  std::string path() const { return folder_.path().string(); }

  testing::Folder folder_;
};

TEST_F(Weights, FindsTheWeightsOrSaysWhatIsThere) {
  const auto refuses = [&](std::initializer_list<std::string> parts) {
    return throws<std::runtime_error>([&] { weights(false); }, parts);
  };
  EXPECT_TRUE(refuses({path(), "has neither model.safetensors nor model.safetensors.index.json"}));
  io::write_atomically(folder_ / "pytorch_model.bin", "pickle");
  EXPECT_TRUE(refuses({"its pytorch_model.bin is converted by", "python -c",
                       message("save_pretrained('", path())}));
  io::write_atomically(folder_ / "model.safetensors.index.json", "{");
  EXPECT_TRUE(refuses({"index.json' is not valid JSON"}));
  io::write_safetensors(folder_ / "model.safetensors",
                        {{{"model.norm.weight", at::ones({3})}}, {}});
  EXPECT_EQ(weights(false).size(), 1);
}

TEST_F(Weights, ReadsTheOneTensorOfTiedEmbeddingsByEitherName) {
  const at::Tensor tensor = at::rand({3, 2});
  const char *embedding = "model.embed_tokens.weight", *head = "lm_head.weight";
  const auto read_tied = [&](const std::map<std::string, at::Tensor>& stored) {
    io::write_safetensors(folder_ / "model.safetensors", {stored, {}});
    return weights(true);
  };
  for (const auto& stored : std::vector<std::map<std::string, at::Tensor>>{
           {{embedding, tensor}}, {{head, tensor}}, {{embedding, tensor}, {head, tensor}}}) {
    const auto all = read_tied(stored);
    EXPECT_EQ(all.size(), 1);
    EXPECT_TRUE(at::equal(all.at(embedding), tensor));
  }
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        read_tied({{embedding, tensor}, {head, tensor + 1}});
      },
      {path(), "lm_head.weight is not model.embed_tokens.weight", "tie_word_embeddings = false"}));
  EXPECT_EQ(weights(false).size(), 2);
}

}  // namespace
}  // namespace lighthouse::model
