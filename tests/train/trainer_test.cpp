#include "lighthouse/train/train.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "lighthouse/core/check.h"
#include "lighthouse/data/corpus.h"
#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/train/device.h"
#include "lighthouse/train/step_graphs.h"
#include "tests/support/device.h"
#include "tests/train/support.h"

namespace lighthouse::train {
namespace {

namespace fs = std::filesystem;
using run::Checkpoints;
using run::dense_stage;
using run::kLighthouseStage;
using run::read_checkpoint;
using run::Recipe;
using run::recipe_head;
using run::RunFolder;
using run::timed_stage;
using run::write_text;
using testing::throws;

TEST_F(TrainerTest, LearnsAndLeavesItsFiles) {
  const std::string said = train(recipe(kLighthouseStage + dense_stage("dense", 12)));
  EXPECT_NE(said.find("Token frequencies alone"), std::string::npos) << said;

  const run::MetricsHistory history = metrics();
  ASSERT_EQ(history.steps.size(), 22u);
  EXPECT_LT(history.steps.back().loss, history.steps.front().loss - 0.5);
  int64_t tokens = 0;
  for (size_t i = 0; i < history.steps.size(); ++i) {
    const run::StepMetrics& step = history.steps[i];
    const bool first_stage = i < 10;
    EXPECT_EQ(step.step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(step.stage, first_stage ? "lighthouse" : "dense");
    EXPECT_EQ(step.attention, first_stage && i % 4 != 3 ? "lighthouse" : "dense");
    EXPECT_EQ(step.tokens, tokens += first_stage ? 512 : 256);
    EXPECT_GT(step.seconds, i == 0 ? 0 : history.steps[i - 1].seconds);
  }
  std::vector<std::pair<int64_t, std::string>> evals;
  for (const run::EvalMetrics& eval : history.evals) {
    evals.emplace_back(eval.step, eval.when);
    EXPECT_EQ(eval.dense_loss == eval.trained_loss, eval.stage == "dense") << eval.step;
  }
  EXPECT_EQ(evals, (std::vector<std::pair<int64_t, std::string>>{{0, "before"},
                                                                 {5, "during"},
                                                                 {10, "after"},
                                                                 {10, "before"},
                                                                 {15, "during"},
                                                                 {20, "during"},
                                                                 {22, "after"}}));

  const RunFolder run(folder / "run");
  EXPECT_EQ(Recipe::read(run.recipe()).to_toml(),
            recipe(kLighthouseStage + dense_stage("dense", 12)).to_toml());
  EXPECT_EQ(Checkpoints(run.checkpoints()).list().size(), 2u);
  const auto summary = nlohmann::json::parse(io::read_file(run.summary()));
  ASSERT_EQ(summary.at("stages").size(), 2u);
  const auto& stage = summary.at("stages")[0];
  EXPECT_EQ(stage.at("attention"), "lighthouse");
  EXPECT_EQ(stage.at("steps"), 10);
  EXPECT_EQ(stage.at("tokens"), 5120);
  EXPECT_EQ(stage.at("seconds"), history.steps[9].seconds);
  EXPECT_EQ(stage.at("train_loss"), history.steps[9].loss);
  EXPECT_EQ(stage.at("dense_loss_before"), history.evals[0].dense_loss);
  EXPECT_EQ(stage.at("trained_loss_after"), history.evals[2].trained_loss);
}

/// A context too short for Lighthouse: what is recorded is what was computed.
TEST_F(TrainerTest, RecordsAStageThatRunsDenseAsDense) {
  Recipe asked = recipe(kLighthouseStage, "asked");
  asked.stages[0].context = 32;
  asked.stages[0].dense_share = 0;
  asked.stages[0].steps = 2;
  Recipe dense = asked;
  dense.run.out = (folder / "dense").string();
  dense.stages[0].attention = nn::Mode::kDense;
  train(asked);
  train(dense);
  EXPECT_TRUE(same_tensors(checkpoint(2, "asked"), checkpoint(2, "dense")));
  for (const run::StepMetrics& step : metrics("asked").steps) EXPECT_EQ(step.attention, "dense");
  const auto summary = nlohmann::json::parse(io::read_file(RunFolder(folder / "asked").summary()));
  EXPECT_EQ(summary.at("stages")[0].at("attention"), "dense");
}

TEST_F(TrainerTest, AStageSwitchKeepsOptimizerAndPosition) {
  train(recipe(dense_stage("whole", 8), "whole"));
  train(recipe(dense_stage("first", 3) + dense_stage("second", 5), "split"));
  EXPECT_TRUE(same_tensors(checkpoint(8, "whole"), checkpoint(8, "split")));
  EXPECT_EQ(read_checkpoint(checkpoint(8, "split")).position, 8u * 256);
  const auto whole = metrics("whole"), split = metrics("split");
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(whole.steps[i].loss, split.steps[i].loss);
}

TEST_F(TrainerTest, MicroBatchesAddUpToTheBatch) {
  Recipe whole = recipe(dense_stage("s", 1), "whole");
  Recipe parts = recipe(dense_stage("s", 1), "parts");
  whole.stages[0].batch = parts.stages[0].batch = 4;
  parts.stages[0].micro_batch = 2;
  whole.optimizer.warmup_steps = parts.optimizer.warmup_steps = 0;
  train(whole);
  train(parts);
  // The sums are the same, in another order.
  const run::StepMetrics a = metrics("whole").steps[0], b = metrics("parts").steps[0];
  EXPECT_NEAR(b.loss / a.loss, 1, 1e-5);
  EXPECT_NEAR(b.grad_norm / a.grad_norm, 1, 1e-4);
}

TEST_F(TrainerTest, TheSeedDecidesTheBits) {
  Recipe one = recipe(dense_stage("s", 4), "one");
  train(one);
  one.run.out = (folder / "two").string();
  train(one);
  EXPECT_TRUE(same_tensors(checkpoint(4, "one"), checkpoint(4, "two")));
  one.run.out = (folder / "three").string();
  one.run.seed = 4;
  train(one);
  EXPECT_FALSE(same_tensors(checkpoint(4, "one"), checkpoint(4, "three")));
}

TEST_F(TrainerTest, RefusesToOverwriteARun) {
  const Recipe r = recipe(dense_stage("s", 4));
  train(r);
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r); },
                                            {(folder / "run").string(), "--resume", "--out"}));
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] {
        train(recipe(dense_stage("s", 4), "none"), {true, {}});
      },
      {(folder / "none").string()}));
  EXPECT_FALSE(fs::exists(folder / "none"));
  const io::Lock lock(RunFolder(folder / "run").lock(), "this test");
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        train(r, {true, {}});
      },
      {(folder / "run").string() + "' is in use by process "}));
}

TEST_F(TrainerTest, GoesOnFromAnEarlierCheckpoint) {
  Recipe r = recipe(kLighthouseStage + dense_stage("dense", 6));
  r.run.keep_checkpoints = 10;
  train(r);
  const auto before = metrics();
  const fs::path last = folder / "last";
  fs::copy(checkpoint(16), last, fs::copy_options::recursive);
  fs::resize_file(checkpoint(16) / "model.safetensors", 100);

  EXPECT_TRUE(throws<std::runtime_error>(
      [&] {
        train(r, {true, {}});
      },
      {"model.safetensors", "is damaged", "the one before it is", "step-00000015"}));
  // The middle of the second stage, then of the first; the end of the first is where they meet.
  for (const int64_t step : {13, 10, 7}) {
    train(r, {false, checkpoint(step)});
    EXPECT_TRUE(same_tensors(checkpoint(16), last)) << step;
    const auto after = metrics();
    ASSERT_EQ(after.steps.size(), before.steps.size());
    ASSERT_EQ(after.evals.size(), before.evals.size());
    for (size_t i = 0; i < 16; ++i) EXPECT_EQ(after.steps[i].loss, before.steps[i].loss);
    for (size_t i = 0; i < before.evals.size(); ++i) {
      EXPECT_EQ(after.evals[i].when, before.evals[i].when);
      EXPECT_EQ(after.evals[i].trained_loss, before.evals[i].trained_loss);
    }
  }
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] {
        train(r, {false, last});
      },
      {"--resume-from", last.string()}));
}

/// Raises SIGTERM when a line is printed that has these words.
class RaisesAt : public std::stringbuf {
 public:
  explicit RaisesAt(std::string words) : words_(std::move(words)) {}

 protected:
  std::streamsize xsputn(const char* text, std::streamsize count) override {
    const std::streamsize put = std::stringbuf::xsputn(text, count);
    if (!words_.empty() && str().find(words_) != std::string::npos) {
      words_.clear();
      std::raise(SIGTERM);
    }
    return put;
  }

 private:
  std::string words_;
};

/// What is stopped in an evaluation makes a checkpoint of the step before it, and the evaluation
/// comes again.
TEST_F(TrainerTest, StopsWithinAnEvaluationAndResumesToTheSameBits) {
  const auto stages = kLighthouseStage + dense_stage("dense", 6);
  Recipe whole = recipe(stages, "whole");
  train(whole);
  Recipe stopped = recipe(stages, "stopped");
  const auto stop_after = [&](const std::string& words) {
    RaisesAt buffer(words);
    std::ostream out(&buffer);
    EXPECT_EQ(train::train(stopped, {true, {}}, out, false), SIGTERM) << words;
    return read_checkpoint(Checkpoints(RunFolder(folder / "stopped").checkpoints()).list().back());
  };
  // The first evaluation of all comes after the words about a run that has no checkpoint, that of
  // the second stage after the last words about the first.
  fs::create_directory(folder / "stopped");
  EXPECT_EQ(stop_after("no checkpoint yet").step, 0);
  EXPECT_TRUE(metrics("stopped").evals.empty());
  EXPECT_EQ(stop_after("after stage lighthouse").step, 10);
  EXPECT_EQ(metrics("stopped").evals.back().when, "after");
  stopped.run.checkpoint_every_steps = 100;  // so that the run has no checkpoint of this step
  EXPECT_EQ(stop_after("step 13/16").step, 13);
  train(stopped, {true, {}});
  EXPECT_TRUE(same_tensors(checkpoint(16, "whole"), checkpoint(16, "stopped")));
  const auto a = metrics("whole"), b = metrics("stopped");
  ASSERT_EQ(a.steps.size(), b.steps.size());
  ASSERT_EQ(a.evals.size(), b.evals.size());
  for (size_t i = 0; i < a.steps.size(); ++i) EXPECT_EQ(a.steps[i].loss, b.steps[i].loss);
  for (size_t i = 0; i < a.evals.size(); ++i) {
    EXPECT_EQ(a.evals[i].dense_loss, b.evals[i].dense_loss);
  }
}

TEST_F(TrainerTest, ChecksTheDiskBeforeItTrains) {
  Recipe r = recipe(dense_stage("s", 4));
  r.model.vocab_size = int64_t{1} << 40;
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r); }, {"no room for a checkpoint"}));
  EXPECT_FALSE(fs::exists(folder / "run"));
}

TEST_F(TrainerTest, RefusesToGoOnWithAnotherRecipeOrText) {
  const Recipe r = recipe(dense_stage("s", 4));
  train(r);
  Recipe other = r;
  other.optimizer.beta1 = 0.5;
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] {
        train(other, {true, {}});
      },
      {"optimizer.beta1: 0.9 -> 0.5"}));
  write_text(folder / "text", 2);
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] {
        train(r, {true, {}});
      },
      {(folder / "text").string(), "is not what the run began with"}));
  // Without the list of its files, which earlier versions did not make, the text itself tells.
  fs::remove(folder / "run" / "data.txt");
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r, {true, {}}); }, {"fingerprint"}));
  write_text(folder / "text");
  fs::rename(folder / "run", folder / "moved");
  other = r;
  other.run.out = (folder / "moved").string();
  train(other, {true, {}});
}

TEST_F(TrainerTest, GoesOnWithTheFilesThatItBeganWith) {
  fs::create_directory(folder / "data");
  fs::rename(folder / "text", folder / "data/a.txt");
  Recipe r = recipe(dense_stage("s", 4), "data/run");
  r.data.path = {(folder / "data").string()};
  r.run.keep_checkpoints = 10;
  EXPECT_EQ(train(r).find("left out"), std::string::npos);
  const data::FileList list = data::read_file_list(folder / "data/run/data.txt");
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].name, "a.txt");

  // The run itself, and what comes later, is not among them.
  std::ofstream(folder / "data/later.txt") << "later";
  std::ofstream(folder / "data/later.bin") << "later";
  Recipe longer = r;
  longer.stages[0].steps = 6;
  Start forced{true, {}};
  forced.force = true;
  EXPECT_NE(train(longer, forced).find("resumed after step 4"), std::string::npos);
  longer.run.out = (folder / "data/branch").string();
  train(longer, {false, {}, checkpoint(4, "data/run")});
  EXPECT_EQ(data::read_file_list(folder / "data/branch/data.txt"), list);

  fs::remove(folder / "data/later.bin");
  r.run.out = (folder / "data/other").string();
  const std::string said = train(r);
  EXPECT_NE(said.find("the folder of a run"), std::string::npos) << said;
  EXPECT_NE(said.find("branch, run"), std::string::npos) << said;
  EXPECT_EQ(data::read_file_list(folder / "data/other/data.txt").size(), 2u);
}

TEST_F(TrainerTest, FindsIdsBeyondTheVocabularyBeforeItBegins) {
  // Where training never gets to.
  std::vector<uint16_t> ids(20000, 7);
  ids[15000] = 256;
  std::ofstream(folder / "ids.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()), 40000);
  Recipe r = recipe(dense_stage("s", 1));
  r.data.path = {(folder / "ids.bin").string()};
  const auto fails = [&](std::initializer_list<std::string> parts) {
    return throws<std::runtime_error>([&] { train(r); }, parts);
  };
  EXPECT_TRUE(fails({"ids.bin' has the id 256 at position 15000", "model.vocab_size"}));
  data::write_tokens(folder / "ids.bin", std::vector<int64_t>(20000, 7), 257);
  EXPECT_TRUE(fails({"ids.bin' has a vocabulary of 257", "has 256"}));
  // Its header says too little.
  std::vector<int64_t> wide(ids.begin(), ids.end());
  data::write_tokens(folder / "ids.bin", wide, 257);
  std::fstream(folder / "ids.bin", std::ios::binary | std::ios::in | std::ios::out)
      .seekp(24)
      .write("\0\1", 2);
  EXPECT_TRUE(fails({"ids.bin' has the id 256 at position 15000"}));
  EXPECT_FALSE(fs::exists(folder / "run"));
}

TEST_F(TrainerTest, GoesOnWithAnotherRecipeWhereItIsForcedTo) {
  const Recipe r = recipe(dense_stage("s", 4));
  train(r);
  Recipe other = r;
  other.run.log_every_steps = 2;  // what is measured and saved when is free
  other.run.keep_checkpoints = 3;
  train(other, {true, {}});
  EXPECT_FALSE(fs::exists(RunFolder(folder / "run").forced()));
  other.stages[0].steps = 6;
  Start forced{true, {}};
  forced.force = true;
  const std::string change = "stage.0.steps: 4 -> 6";
  EXPECT_NE(train(other, forced).find("resumed with a changed recipe (--force): " + change),
            std::string::npos);
  EXPECT_EQ(read_checkpoint(checkpoint(6)).step, 6);
  EXPECT_EQ(Recipe::read(RunFolder(folder / "run").recipe()).to_toml(), other.to_toml());
  const auto record = nlohmann::json::parse(io::read_file(RunFolder(folder / "run").forced()));
  EXPECT_EQ(record.at("step"), 4);
  EXPECT_EQ(record.at("changed"), std::vector<std::string>{change});

  // Stages that the run has no evaluations of are summarized as far as they go.
  Recipe renamed = recipe(dense_stage("a", 5) + dense_stage("b", 2));
  train(renamed, forced);
  const auto stages =
      nlohmann::json::parse(io::read_file(RunFolder(folder / "run").summary())).at("stages");
  EXPECT_TRUE(stages[0].at("dense_loss_after").is_null());
  EXPECT_EQ(stages[0].at("tokens"), 5 * 256);
  EXPECT_TRUE(stages[1].at("dense_loss_after").is_number());
  renamed.stages.pop_back();
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(renamed, forced); },
                                            {"has 5 steps", "already at step 7"}));
}

TEST_F(TrainerTest, TheZLossMovesTheWeightsAndNotTheReportedLoss) {
  Recipe plain = recipe(dense_stage("s", 4), "plain");
  Recipe pulled = recipe(dense_stage("s", 4), "pulled");
  pulled.optimizer.z_loss = 0.1;
  train(plain);
  train(pulled);
  EXPECT_EQ(metrics("plain").steps[0].loss, metrics("pulled").steps[0].loss);
  EXPECT_NE(metrics("plain").steps[0].grad_norm, metrics("pulled").steps[0].grad_norm);
  EXPECT_NE(metrics("plain").steps[3].loss, metrics("pulled").steps[3].loss);
}

TEST_F(TrainerTest, BranchesFromACheckpointOfAnotherRun) {
  const std::string stages = kLighthouseStage + dense_stage("dense", 6);
  Recipe whole = recipe(stages, "whole");
  whole.run.keep_checkpoints = 20;
  train(whole);
  const fs::path from = checkpoint(10, "whole");

  // Unchanged, it is the same run.
  Recipe same = whole;
  same.run.out = (folder / "same").string();
  EXPECT_NE(train(same, {false, {}, from}).find("branched after step 10, with 0 changes"),
            std::string::npos);
  EXPECT_TRUE(same_tensors(checkpoint(16, "whole"), checkpoint(16, "same")));
  const auto a = metrics("whole"), b = metrics("same");
  ASSERT_EQ(b.steps.size(), 16u);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(a.steps[i].loss, b.steps[i].loss);
  EXPECT_EQ(a.evals.size(), b.evals.size());

  // Later stages and settings may be others; one that had begun may be longer or shorter.
  Recipe other = whole;
  other.run.out = (folder / "other").string();
  other.stages[1].context = 64;
  other.stages[1].steps = 3;
  other.optimizer.beta1 = 0.8;
  train(other, {false, {}, from});
  EXPECT_EQ(metrics("other").steps.size(), 13u);
  const auto record = nlohmann::json::parse(io::read_file(RunFolder(folder / "other").branch()));
  EXPECT_EQ(record.at("step"), 10);
  EXPECT_EQ(record.at("changed"),
            (std::vector<std::string>{"optimizer.beta1: 0.9 -> 0.8", "stage.1.steps: 6 -> 3",
                                      "stage.1.context: 128 -> 64"}));
  Recipe shorter = whole;
  shorter.run.out = (folder / "shorter").string();
  shorter.stages[0].steps = 8;
  train(shorter, {false, {}, checkpoint(7, "whole")});
  EXPECT_EQ(metrics("shorter").steps.size(), 14u);

  const auto refused = [&](const char* out, const auto& change, const fs::path& at,
                           std::initializer_list<std::string> words) {
    Recipe bad = whole;
    bad.run.out = (folder / out).string();
    change(bad);
    return throws<std::invalid_argument>([&] { train(bad, {false, {}, at}); }, words);
  };
  EXPECT_TRUE(refused("a", [](Recipe& r) { r.stages[0].config.budget = 4; }, from,
                      {"stage.0.budget: 8 -> 4 would change what was trained up to step 10"}));
  EXPECT_TRUE(refused("b", [](Recipe& r) { r.stages[0].steps = 9; }, from, {"steps: 10 -> 9"}));
  EXPECT_TRUE(refused("c", [](Recipe& r) { r.model.hidden_size = 32; }, from,
                      {"model.hidden_size: 16 -> 32 would change"}));
  EXPECT_TRUE(refused("d", [](Recipe& r) { r.stages[0].steps = 12; }, checkpoint(13, "whole"),
                      {"steps: 10 -> 12", "trained up to step 13"}));
  EXPECT_TRUE(refused("e",
                      [](Recipe& r) {
                        r.stages.erase(r.stages.begin() + 1);
                        r.stages[0].steps = 20;
                      },
                      checkpoint(13, "whole"), {"would change"}));
  for (const char* out : {"a", "b", "c", "d", "e"}) EXPECT_FALSE(fs::exists(folder / out)) << out;
  Recipe done = whole;  // what is done of the stage under way is enough of it
  done.run.out = (folder / "done").string();
  done.stages[1].steps = 3;
  train(done, {false, {}, checkpoint(13, "whole")});
  EXPECT_TRUE(refused("same", [](Recipe&) {}, from, {"already exists"}));
}

/// A clock by which each step takes a quarter of a second, and what is between steps, 100.
Clock quarters() {
  return [reads = 0]() mutable {
    ++reads;
    return 100.0 * ((reads + 1) / 2) + 0.25 * (reads / 2);
  };
}

/// Each stage, by its steps.
std::map<std::string, int64_t> steps_of(const run::MetricsHistory& history) {
  std::map<std::string, int64_t> steps;
  for (const run::StepMetrics& step : history.steps) ++steps[step.stage];
  return steps;
}

TEST_F(TrainerTest, EndsStagesWhenTheirSecondsAreSpent) {
  Recipe r = recipe(timed_stage("a", 1) + timed_stage("b", 0.6) + timed_stage("c", 0.1));
  r.optimizer.warmup_steps = 0;
  r.optimizer.lr = 1;
  r.optimizer.final_lr_share = 0;
  r.stages[1].warmup_steps = 2;
  const std::string said = train(r, {}, quarters());
  EXPECT_NE(said.find("step 1, second 0/2  a (dense)"), std::string::npos) << said;

  // a ends after 1 second, b after 1.6, and c would have ended after 1.7: but it has a step.
  const run::MetricsHistory history = metrics();
  EXPECT_EQ(steps_of(history), (std::map<std::string, int64_t>{{"a", 4}, {"b", 3}, {"c", 1}}));
  ASSERT_EQ(history.steps.size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    const double before = 0.25 * static_cast<double>(i);
    EXPECT_EQ(history.steps[i].seconds, before + 0.25);
    // The first step of b has half of its learning rate, the second has begun after a quarter of b.
    const double expected = std::max(0.0, 1 - before / 1.7) * (i == 4 ? 0.5 : 1);
    EXPECT_NEAR(history.steps[i].lr, expected, 1e-12) << i;
  }
  const auto summary = nlohmann::json::parse(io::read_file(RunFolder(folder / "run").summary()));
  EXPECT_EQ(summary.at("stages")[1].at("steps"), 3);
  EXPECT_EQ(summary.at("stages")[1].at("tokens"), 3 * 256);
  EXPECT_EQ(summary.at("stages")[1].at("seconds"), 0.75);
  EXPECT_EQ(summary.at("stages")[1].at("train_loss"), history.steps[6].loss);
}

TEST_F(TrainerTest, GoesOnWithTheSecondsThatAreLeft) {
  Recipe r = recipe(timed_stage("a", 1) + timed_stage("b", 0.6) + timed_stage("c", 0.1));
  r.run.keep_checkpoints = 20;
  train(r, {}, quarters());
  const auto before = metrics();
  const fs::path last = folder / "last";
  fs::copy(checkpoint(8), last, fs::copy_options::recursive);
  // Complete, the ends of stages, and the middle of each.
  for (const int64_t step : {8, 7, 6, 4, 2}) {
    train(r, {false, checkpoint(step)}, quarters());
    EXPECT_TRUE(same_tensors(checkpoint(8), last)) << step;
    const auto after = metrics();
    EXPECT_EQ(steps_of(after), steps_of(before)) << step;
    ASSERT_EQ(after.evals.size(), before.evals.size()) << step;
    for (size_t i = 0; i < before.evals.size(); ++i) {
      EXPECT_EQ(after.evals[i].stage + after.evals[i].when,
                before.evals[i].stage + before.evals[i].when);
      EXPECT_EQ(after.evals[i].dense_loss, before.evals[i].dense_loss);
    }
  }
  Recipe fewer = r;
  fewer.stages.resize(2);
  Start forced{true, {}};
  forced.force = true;
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { train(fewer, forced); }, {"has 2 stages", "the checkpoint is already in stage 3"}));
}

TEST_F(TrainerTest, BranchesWithOtherSeconds) {
  Recipe r = recipe(timed_stage("a", 1) + timed_stage("b", 0.6), "whole");
  r.run.keep_checkpoints = 20;
  train(r, {}, quarters());
  const auto branch = [&](const char* out, int64_t from, double a, double b) {
    Recipe other = r;
    other.run.out = (folder / out).string();
    other.stages[0].seconds = a;
    other.stages[1].seconds = b;
    train(other, {false, {}, checkpoint(from, "whole")}, quarters());
    return steps_of(metrics(out));
  };
  using Steps = std::map<std::string, int64_t>;
  EXPECT_EQ(branch("later", 4, 1, 2), (Steps{{"a", 4}, {"b", 8}}));
  EXPECT_EQ(branch("longer", 4, 2, 0.5), (Steps{{"a", 8}, {"b", 2}}));
  EXPECT_EQ(branch("shorter", 2, 0.75, 0.25), (Steps{{"a", 3}, {"b", 1}}));
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { branch("too-short", 4, 0.75, 1); },
      {"stage.0.seconds: 1.0 -> 0.75 would change what was trained up to step 4"}));
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { branch("past", 6, 2, 1); },
      {"stage.0.seconds: 1.0 -> 2.0 would change what was trained up to step 6"}));
}

TEST_F(TrainerTest, SkipsStepsThatAreNotFiniteAndThenStops) {
  Recipe r = recipe(dense_stage("s", 8));
  r.optimizer.lr = 1e30;
  r.optimizer.weight_decay = 0;
  r.optimizer.max_skipped_steps = 2;
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] { train(r); }, {"would be skipped like 2 before it", "its loss is", "optimizer.lr"}));
  const auto newest = Checkpoints(RunFolder(folder / "run").checkpoints()).list();
  ASSERT_FALSE(newest.empty());
  const run::MetricsHistory history = metrics();
  EXPECT_EQ(history.skips.size(), 2u);
  EXPECT_EQ(read_checkpoint(newest.back()).step, static_cast<int64_t>(history.steps.size()));
}

TEST_F(TrainerTest, FailsWhereEveryStepWasSkipped) {
  Recipe r = recipe(dense_stage("s", 4));
  r.optimizer.skip_grad_norm = 1e-9;
  for (const bool resume : {false, true}) {
    EXPECT_TRUE(throws<std::runtime_error>(
        [&] {
          train(r, {resume, {}});
        },
        {"all 4 steps were skipped", "its gradient norm", "no summary"}));
    EXPECT_FALSE(fs::exists(RunFolder(folder / "run").summary()));
    EXPECT_EQ(read_checkpoint(checkpoint(4)).skipped, 4);
  }
}

TEST_F(TrainerTest, FailsWhereTheModelAtTheEndIsOfNoUse) {
  Recipe r = recipe(dense_stage("s", 3));
  r.optimizer.lr = 1e300;
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] { train(r); }, {"held-out loss at the end is not a finite number", "no summary"}));
  EXPECT_EQ(metrics().skips.size(), 2u);
  EXPECT_FALSE(fs::exists(RunFolder(folder / "run").summary()));
}

TEST_F(TrainerTest, SkipsStepsOfLargeGradientsAndGoesOn) {
  Recipe plain = recipe(dense_stage("s", 8), "plain");
  train(plain);
  const run::MetricsHistory all = metrics("plain");
  std::vector<double> norms;
  for (const run::StepMetrics& step : all.steps) norms.push_back(step.grad_norm);
  Recipe r = recipe(dense_stage("s", 8));
  r.optimizer.skip_grad_norm = *std::max_element(norms.begin(), norms.end()) * 0.999;
  const std::string said = train(r);
  const run::MetricsHistory history = metrics();
  ASSERT_GE(history.skips.size(), 1u);
  EXPECT_EQ(history.skips.size() + history.steps.size(), 8u);
  EXPECT_NE(said.find(message("step ", history.skips[0].step, " is skipped")), std::string::npos);
  EXPECT_EQ(read_checkpoint(checkpoint(8)).skipped, static_cast<int64_t>(history.skips.size()));

  // A skipped step changes nothing but the position: a run that goes on after it has the same bits.
  const int64_t before = history.skips[0].step;
  if (const fs::path from = checkpoint(before - 1); !from.empty()) {
    const std::string end = io::read_file(checkpoint(8) / "model.safetensors");
    train(r, {false, from});
    EXPECT_EQ(io::read_file(checkpoint(8) / "model.safetensors"), end);
  }
}

/// Weights and moments stay float32, and so does what is saved.
TEST_F(TrainerTest, TrainsInBfloat16) {
  Recipe exact = recipe(kLighthouseStage + dense_stage("dense", 6), "exact");
  Recipe rounded = recipe(kLighthouseStage + dense_stage("dense", 6), "rounded");
  rounded.run.dtype = run::Dtype::kBFloat16;
  train(exact);
  train(rounded);
  const auto a = metrics("exact"), b = metrics("rounded");
  ASSERT_EQ(a.steps.size(), b.steps.size());
  EXPECT_NE(a.steps.back().loss, b.steps.back().loss);
  // bfloat16 has 8 bits: losses of some nats agree to a hundredth or so.
  for (size_t i = 0; i < a.steps.size(); ++i) EXPECT_NEAR(a.steps[i].loss, b.steps[i].loss, 0.1);
  for (const auto& [name, tensor] : read_checkpoint(checkpoint(16, "rounded")).model) {
    EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
  }
  const std::string end = io::read_file(checkpoint(16, "rounded") / "model.safetensors");
  train(rounded, {false, checkpoint(15, "rounded")});
  EXPECT_EQ(io::read_file(checkpoint(16, "rounded") / "model.safetensors"), end);
}

/// bfloat16 with the attention kernels of real runs, float32 with plain products.
TEST_F(TrainerTest, ReplaysStepsToTheSameBits) {
  if (testing::device().is_cpu()) GTEST_SKIP() << "CUDA graphs are of a GPU";
  for (const run::Dtype dtype : {run::Dtype::kFloat32, run::Dtype::kBFloat16}) {
    const std::string name = std::string(to_string(dtype)) + '-';
    std::optional<testing::AttentionKernels> kernels;
    if (dtype == run::Dtype::kBFloat16) kernels.emplace();
    Recipe eager = recipe(kLighthouseStage + dense_stage("dense", 6), name + "eager");
    eager.run.dtype = dtype;
    eager.run.checkpoint_every_steps = 6;
    eager.run.keep_checkpoints = 10;
    Recipe graphs = eager;
    graphs.run.out = (folder / (name + "graphs")).string();
    graphs.run.cuda_graphs = true;
    train(eager);
    train(graphs);
    EXPECT_TRUE(same_tensors(checkpoint(16, name + "eager"), checkpoint(16, name + "graphs")));
    EXPECT_EQ(metrics(name + "eager").steps.back().loss,
              metrics(name + "graphs").steps.back().loss);
    // From the middle of a stage on, where the kinds of its steps come in another order.
    for (const int64_t step : {12, 6}) {
      train(graphs, {false, checkpoint(step, name + "graphs")});
      EXPECT_TRUE(same_tensors(checkpoint(16, name + "eager"), checkpoint(16, name + "graphs")));
    }
  }
}

/// Of every attention, the dense share of a Lighthouse stage too.
constexpr const char* kStagesWithPieces =
    "[[stage]]\nname = 'short'\nsteps = 3\ncontext = 64\nbatch = 8\nmicro_batch = 4\n"
    "[[stage]]\nname = 'lighthouse'\nsteps = 5\ncontext = 512\nbatch = 2\nlocal = 32\n"
    "attention = 'lighthouse'\nlevels = 3\npooling_factor = 4\nbudget = 8\ntile_budget = 4\n"
    "dense_layers = [0]\ndense_share = 0.25\ndense_context = 128\n"
    "[[stage]]\nname = 'local'\nsteps = 2\ncontext = 512\nlocal = 32\nattention = 'local'\n"
    "[[stage]]\nname = 'dense'\nsteps = 2\ncontext = 512\n";

TEST_F(TrainerTest, GoesOnWithinDocumentsToTheSameBits) {
  Recipe r = within_documents(kStagesWithPieces);
  r.run.keep_checkpoints = 20;
  train(r);
  const run::MetricsHistory before = metrics();
  ASSERT_EQ(before.steps.size(), 12u);
  EXPECT_EQ(before.steps[4].attention, "lighthouse");
  EXPECT_EQ(before.steps[6].attention, "dense");
  EXPECT_LT(before.steps.back().loss, before.steps.front().loss);
  EXPECT_NE(before.evals[1].dense_loss, before.evals.front().dense_loss);
  const Recipe recorded = read_checkpoint(checkpoint(12)).recipe;
  EXPECT_EQ(recorded.data.attention, data::Attention::kWithin);
  EXPECT_EQ(recorded.data.positions, data::Positions::kDocument);
  EXPECT_EQ(recorded.stages[1].documents_per_row, 16);
  const fs::path last = folder / "last";
  fs::copy(checkpoint(12), last, fs::copy_options::recursive);
  for (const int64_t step : {9, 5, 2}) {
    train(r, {false, checkpoint(step)});
    EXPECT_TRUE(same_tensors(checkpoint(12), last)) << step;
    EXPECT_EQ(metrics().evals.back().dense_loss, before.evals.back().dense_loss);
  }
  Recipe across = within_documents(kStagesWithPieces, "across");
  across.data.attention = data::Attention::kAcross;
  for (run::StageRecipe& stage : across.stages) stage.documents_per_row = 0;
  train(across);
  EXPECT_NE(metrics("across").steps[0].loss, before.steps[0].loss);
}

/// Relative positions are the same either way, and so are losses but for rounding.
TEST_F(TrainerTest, RotatesByThePositionsThatTheRecipeAsksFor) {
  Recipe documents = within_documents(dense_stage("s", 2), "documents-run");
  Recipe rows = within_documents(dense_stage("s", 2), "rows");
  rows.data.positions = data::Positions::kRow;
  Recipe across = within_documents(dense_stage("s", 2), "across");
  across.data.attention = data::Attention::kAcross;
  across.stages[0].documents_per_row = 0;
  Recipe across_rows = across;
  across_rows.run.out = (folder / "across-rows").string();
  across_rows.data.positions = data::Positions::kRow;
  for (Recipe* r : {&documents, &rows, &across, &across_rows}) {
    r->model.initializer_range = 0.5;  // of the usual one attention hardly depends on positions
    train(*r);
  }
  const auto loss = [&](const std::string& out) { return metrics(out).steps[0].loss; };
  EXPECT_NEAR(loss("documents-run"), loss("rows"), 1e-5);
  EXPECT_GT(std::abs(loss("across") - loss("across-rows")), 1e-5);
}

TEST_F(TrainerTest, NamesTheStageWhoseRowsHaveTooManyDocuments) {
  Recipe r = within_documents(dense_stage("a", 1) + dense_stage("b", 50));
  r.stages[1].documents_per_row = 1;
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { train(r); }, {"stage 'b'", "documents_per_row is 1", "a row of 128 tokens has"}));
  EXPECT_FALSE(fs::exists(folder / "run")) << "the held-out rows tell before it begins";
}

/// What the run begins with tells that, and what a checkpoint begins with again.
TEST_F(TrainerTest, CountsTheDocumentsOfAllRowsBeforeTheFirstStep) {
  Recipe r = within_documents(dense_stage("a", 1) + dense_stage("b", 20));
  r.run.eval_sequences = 1;
  r.run.keep_checkpoints = 30;
  train(r);
  const data::Corpus corpus = data::Corpus::read(r.data);
  data::Loader loader(corpus.train(), corpus.train_ends(), r.run.seed);
  const run::StageRecipe& stage = r.stages[1];
  loader.seek(static_cast<uint64_t>(r.stages[0].tokens()));
  std::vector<int64_t> found;
  for (int64_t step = 0; step < stage.steps; ++step) {
    const data::Batch batch = loader.next(stage.batch, stage.context, {128});
    found.push_back(batch.document_starts.lt(stage.context).sum(1).max().item<int64_t>());
  }
  const auto most = std::ranges::max_element(found);
  r.stages[1].documents_per_row = *most - 1;
  const auto is_refused = [&](const Start& start) {
    return throws<std::invalid_argument>(
        [&] { train(r, start); },
        {"stage 'b'", message("documents_per_row is ", *most - 1, ","),
         message("a row of step ", 2 + (most - found.begin()), " has more documents"),
         message("up to ", *most, ", so it must be")});
  };
  EXPECT_TRUE(is_refused({.from = checkpoint(1), .force = true}));
  EXPECT_FALSE(checkpoint(21).empty()) << "a run that does not go on leaves them all";
  r.run.out = (folder / "other").string();
  EXPECT_TRUE(is_refused({}));
  EXPECT_FALSE(fs::exists(r.run.out));
  r.stages[1].documents_per_row = *most;
  train(r);
}

TEST_F(TrainerTest, RunsAPassTwiceAndThenReplaysIt) {
  if (testing::device().is_cpu()) GTEST_SKIP() << "CUDA graphs are of a GPU";
  use_deterministic_algorithms(true);
  const auto model = run::new_model(recipe(dense_stage("s", 1)), testing::device());
  StepGraphs graphs(*model);
  int passes = 0;
  for (int i = 0; i < 5; ++i) {
    for (const int64_t length : {32, 64}) {
      const at::Tensor counted =
          at::arange(length, at::TensorOptions(at::kLong).device(testing::device())).unsqueeze(0);
      const at::Tensor tokens = counted.remainder(7) + i;
      data::Batch given{tokens, tokens};
      if (length == 64) {
        given.positions = counted * (i + 1);
        given.document_starts =
            at::tensor({0, 10 + i, 40, 64}, at::kInt).unsqueeze(0).to(testing::device());
      }
      const auto pass = [&](const data::Batch& batch) {
        ++passes;
        at::Tensor sum = model->token_losses(batch).sum();
        sum.backward();
        return sum.detach();
      };
      const at::Tensor loss = graphs.run({nn::Mode::kDense, 1, length, 1}, given, pass);
      const at::Tensor expected = model->token_losses(given).sum();
      const auto grads = torch::autograd::grad({expected}, model->parameters());
      EXPECT_TRUE(loss.equal(expected)) << i;
      for (size_t j = 0; j < grads.size(); ++j) {
        EXPECT_TRUE(model->parameters()[j].grad().equal(grads[j])) << i << ", parameter " << j;
        model->parameters()[j].mutable_grad().reset();
      }
    }
  }
  EXPECT_EQ(passes, 4);
}

TEST_F(TrainerTest, RefusesGraphsOfACpu) {
  Recipe r = recipe(dense_stage("s", 1));
  r.run.device = "cpu";
  r.run.cuda_graphs = true;
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r); },
                                            {"run.cuda_graphs is true", "run.device is 'cpu'"}));
}

TEST_F(TrainerTest, RefusesADeviceThatIsNotThere) {
  Recipe r = recipe(dense_stage("s", 4));
  r.run.device = "gpu";
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r); }, {"run.device is 'gpu'"}));
  r.run.device = "cuda:99";
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train(r); }, {"run.device is 'cuda:99'"}));
  EXPECT_FALSE(fs::exists(folder / "run"));
}

}  // namespace
}  // namespace lighthouse::train
