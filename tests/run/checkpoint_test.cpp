#include "lighthouse/run/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "lighthouse/io/checksum.h"
#include "lighthouse/io/safetensors.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe_changes.h"
#include "tests/run/support.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;
using testing::throws;

Checkpoint checkpoint(int64_t step) {
  Checkpoint c;
  c.step = step;
  c.position = uint64_t{1} << 40;
  c.seconds = 0.1;
  c.threads = 2;
  c.ranks = 4;
  c.corpus = ~uint64_t{0};
  c.recipe.run.seed = 1;
  c.recipe.stages.resize(1);
  c.recipe.stages[0].name = "s";
  c.recipe.stages[0].steps = c.recipe.stages[0].context = 1;
  c.random = at::arange(5, at::kByte);
  c.model = {{"a", at::arange(6, at::kFloat).view({2, 3})}};
  c.optimizer = {{"step", at::full({}, static_cast<double>(step), at::kFloat)}};
  return c;
}

TEST(Checkpoint, IsReadAsItWasWritten) {
  const Folder folder;
  const Checkpoints checkpoints(folder / "checkpoints");
  EXPECT_TRUE(checkpoints.list().empty());
  checkpoints.write(checkpoint(123), 2);
  ASSERT_EQ(checkpoints.list(), std::vector<fs::path>{folder / "checkpoints/step-00000123"});
  const Checkpoint read = read_checkpoint(checkpoints.list()[0]);
  const Checkpoint written = checkpoint(123);
  EXPECT_EQ(read.step, written.step);
  EXPECT_EQ(read.position, written.position);
  EXPECT_EQ(read.seconds, written.seconds);
  EXPECT_EQ(read.threads, written.threads);
  EXPECT_EQ(read.ranks, written.ranks);
  EXPECT_EQ(read.corpus, written.corpus);
  EXPECT_EQ(read.recipe.to_toml(), written.recipe.to_toml());
  EXPECT_TRUE(read.random.equal(written.random));
  EXPECT_TRUE(read.model.at("a").equal(written.model.at("a")));
  EXPECT_TRUE(read.optimizer.at("step").equal(written.optimizer.at("step")));
}

/// Where a run lies and what it measures may change, so that is not kept.
TEST(Checkpoint, KeepsOfTheRecipeWhatDecides) {
  const Folder folder;
  Checkpoint c = checkpoint(1);
  c.recipe.run.out = "somewhere";
  c.recipe.init_from = "a/model";
  c.recipe.run.log_every_steps = 7;
  Checkpoints(folder / "").write(c, 2);
  const std::string state = io::read_file(folder / "step-00000001/state.json");
  for (const char* key : {"somewhere", "a/model", "log_every_steps"}) {
    EXPECT_EQ(state.find(key), std::string::npos) << state;
  }
  EXPECT_EQ(read_checkpoint(folder / "step-00000001").recipe.run.out, RunRecipe().out);
}

/// Made by the program when the format was 2 and the recipe in it had every field.
TEST(Checkpoint, IsReadInItsOlderFormat) {
  const Checkpoint old = read_checkpoint(fs::path(LIGHTHOUSE_GOLDEN_RUN) / "step-00000002");
  EXPECT_EQ(old.step, 2);
  EXPECT_EQ(old.recipe.model.rope_theta, 5000);
  EXPECT_EQ(old.recipe.model.rope_scaling, model::RopeScaling());
  ASSERT_EQ(old.recipe.stages.size(), 2u);
  EXPECT_EQ(old.recipe.stages[0].config.budget, 8);
  const auto model = model::new_model(old.recipe.model);
  restore(old.model, model->weights(), "the checkpoint");

  Recipe recipe = old.recipe;
  recipe.data.path = {"elsewhere"};
  recipe.run.cuda_graphs = true;
  EXPECT_TRUE(recipe_changes(recipe, old).empty());
  recipe.model.rope_theta = 1e4;
  recipe.stages[1].steps = 5;
  recipe.stages.emplace_back().name = "more";
  EXPECT_EQ(
      recipe_changes(recipe, old),
      (std::vector<std::string>{"model.rope_theta: 5000.0 -> 10000.0", "stage.1.steps: 1 -> 5",
                                "stage.2: no stage -> stage 'more'"}));
  recipe.stages.resize(1);
  EXPECT_EQ(recipe_changes(recipe, old).back(), "stage.1: stage 'dense' -> no stage");
  const Recipe made_with = recipe_of(old, recipe);
  EXPECT_EQ(made_with.deciding_toml(), old.recipe.deciding_toml());
  EXPECT_EQ(made_with.data.path, std::vector<std::string>{"elsewhere"});
}

/// Writes it anew with the tensors of "model" in two files, as several ranks could write them.
/// @param row the row of "a" at which the second file's part begins
void split_model(const fs::path& path, int64_t row) {
  const at::Tensor a = io::read_safetensors(path / "model.safetensors").tensors.at("a");
  const auto part = [&](const char* name, int64_t begin, const at::Tensor& rows) {
    const std::string info = R"({"a": {"saved_offsets": [)" + std::to_string(begin) + ", 0]}}";
    io::write_safetensors(path / name, {{{"a", rows}}, {{"DCP_SHARDING_INFO", info}}});
  };
  part("first.safetensors", 0, a.narrow(0, 0, 1));
  part("second.safetensors", row, a.narrow(0, 1, 1));
  fs::remove(path / "model.safetensors");
  auto manifest = nlohmann::json::parse(io::read_file(path / "manifest.json"));
  manifest["model"]["files"] = {"first.safetensors", "second.safetensors"};
  io::write_atomically(path / "manifest.json", manifest.dump());
  std::string checksums;
  for (const auto& file : fs::directory_iterator(path)) {
    const std::string name = file.path().filename();
    if (name != "checksums.txt") checksums += io::xxh64(file.path()) + "  " + name + '\n';
  }
  io::write_atomically(path / "checksums.txt", checksums);
}

TEST(Checkpoint, MayHaveATensorInSeveralFiles) {
  const Folder folder;
  Checkpoints(folder / "").write(checkpoint(1), 2);
  const fs::path path = folder / "step-00000001";
  split_model(path, 1);
  EXPECT_TRUE(read_checkpoint(path).model.at("a").equal(checkpoint(1).model.at("a")));
}

TEST(Checkpoint, IsRefusedWhereAPartOfATensorIsMissing) {
  const Folder folder;
  Checkpoints(folder / "").write(checkpoint(1), 2);
  const fs::path path = folder / "step-00000001";
  split_model(path, 0);
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_checkpoint(path); },
                                         {(path / "second.safetensors").string(), "'a'", "row 0",
                                          (path / "first.safetensors").string()}));
  // A file that is listed, but has no checksum, is none of the checkpoint's.
  fs::remove(path / "second.safetensors");
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_checkpoint(path); },
                                         {(path / "second.safetensors").string()}));
  const std::string lines = io::read_file(path / "checksums.txt");
  const size_t name = lines.find("  second.safetensors\n");
  io::write_atomically(path / "checksums.txt",
                       lines.substr(0, name - 16) + lines.substr(lines.find('\n', name) + 1));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_checkpoint(path); },
                                         {"checksums.txt", "no line for 'second.safetensors'"}));
}

/// As `xxhsum -c` reads it: XXH64, two spaces, the name.
TEST(Checkpoint, HasChecksumsThatXxhsumChecks) {
  const Folder folder;
  Checkpoints(folder / "").write(checkpoint(1), 2);
  const fs::path path = folder / "step-00000001";
  std::string expected;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "random.safetensors",
                           "state.json", "manifest.json"}) {
    expected += io::xxh64(path / name) + "  " + name + '\n';
  }
  EXPECT_EQ(io::read_file(path / "checksums.txt"), expected);
  if (std::system("command -v xxhsum >/dev/null") != 0) GTEST_SKIP() << "xxhsum is not installed";
  const std::string check = "cd '" + path.string() + "' && xxhsum --quiet -c checksums.txt";
  EXPECT_EQ(std::system(check.c_str()), 0);
  std::ofstream(path / "state.json", std::ios::app) << ' ';
  EXPECT_NE(std::system((check + " 2>/dev/null >/dev/null").c_str()), 0);
}

TEST(Checkpoint, TheNewestAreKept) {
  const Folder folder;
  const Checkpoints checkpoints(folder / "");
  for (const int64_t step : {8, 9, 10, 100000000}) checkpoints.write(checkpoint(step), 3);
  const auto all = checkpoints.list();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all.front().filename(), "step-00000009");
  EXPECT_EQ(all.back().filename(), "step-100000000");
  checkpoints.remove_after(9);
  EXPECT_EQ(checkpoints.list().size(), 1u);
}

TEST(Checkpoint, SomeAreKeptForGood) {
  const Folder folder;
  const Checkpoints checkpoints(folder / "");
  for (int64_t step = 1; step <= 12; ++step) checkpoints.write(checkpoint(step), 2, 5);
  std::vector<int64_t> steps;
  for (const auto& path : checkpoints.list()) steps.push_back(read_checkpoint(path).step);
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 10, 11, 12}));
}

TEST(Checkpoint, HalfWrittenOnesAreNone) {
  const Folder folder;
  const Checkpoints checkpoints(folder / "");
  const fs::path partial = folder / ".partial-step-00000005";
  fs::create_directory(partial);
  std::ofstream(partial / "model.safetensors") << "half";
  EXPECT_TRUE(checkpoints.list().empty());
  checkpoints.write(checkpoint(5), 2);
  EXPECT_FALSE(fs::exists(partial));
  EXPECT_EQ(read_checkpoint(checkpoints.list()[0]).step, 5);
  fs::create_directory(partial);
  checkpoints.remove_partial();
  EXPECT_FALSE(fs::exists(partial));
}

class DamagedCheckpoint : public ::testing::TestWithParam<const char*> {
 protected:
  DamagedCheckpoint() {
    checkpoints.write(checkpoint(1), 2);
    checkpoints.write(checkpoint(2), 2);
    bytes = io::read_file(path);
  }

  void expect_refused(const std::string& damaged) {
    fs::remove(path);  // ext4 waits for the disk where a file is cut and written again
    std::ofstream(path, std::ios::binary) << damaged;
    EXPECT_TRUE(throws<std::runtime_error>(
        [&] { read_checkpoint(newest); },
        {"step-00000002", "the one before it is '" + (folder / "step-00000001").string()}));
  }

  const Folder folder;
  const Checkpoints checkpoints{folder / ""};
  const fs::path newest = folder / "step-00000002";
  const fs::path path = newest / GetParam();
  std::string bytes;
};

TEST_P(DamagedCheckpoint, IsRefusedWhereverABitIsFlipped) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    expect_refused(damaged);
  }
  EXPECT_EQ(read_checkpoint(folder / "step-00000001").step, 1);
}

TEST_P(DamagedCheckpoint, IsRefusedWhereverItIsCut) {
  for (size_t length = 0; length < bytes.size(); ++length) expect_refused(bytes.substr(0, length));
  expect_refused(bytes + '\0');
  fs::remove(path);
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_checkpoint(newest); }, {path.string()}));
}

INSTANTIATE_TEST_SUITE_P(EachFile, DamagedCheckpoint,
                         ::testing::Values("model.safetensors", "optimizer.safetensors",
                                           "random.safetensors", "state.json", "manifest.json",
                                           "checksums.txt"),
                         [](const auto& test) {
                           const std::string name = test.param;
                           return name.substr(0, name.find('.'));
                         });

TEST(DamagedCheckpointAlone, SaysThatThereIsNoOther) {
  const Folder folder;
  const Checkpoints checkpoints(folder / "");
  checkpoints.write(checkpoint(1), 2);
  fs::remove(folder / "step-00000001/state.json");
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_checkpoint(folder / "step-00000001"); },
                                         {"state.json", "no earlier checkpoint"}));
}

TEST(Restore, RefusesOtherTensors) {
  const std::map<std::string, at::Tensor> into{{"a", at::zeros({2, 3})}, {"b", at::zeros({1})}};
  const at::Tensor a = at::ones({2, 3}), b = at::ones({1});
  EXPECT_TRUE(throws<std::runtime_error>([&] { restore({{"a", a}}, into, "here"); }, {"'b'"}));
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        restore({{"a", a}, {"b", b}, {"c", b}}, into, "here");
      },
      {"'c'"}));
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        restore({{"a", b}, {"b", b}}, into, "here");
      },
      {"'a'", "[1]", "[2, 3]"}));
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        restore({{"a", a.to(at::kDouble)}, {"b", b}}, into, "here");
      },
      {"'a'", "Double", "Float"}));
  restore({{"a", a}, {"b", b}}, into, "here");
  EXPECT_TRUE(into.at("a").equal(a));
}

}  // namespace
}  // namespace lighthouse::run
