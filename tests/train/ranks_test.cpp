#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iostream>
#include <map>
#include <new>

#include "lighthouse/core/check.h"
#include "lighthouse/train/train.h"
#include "tests/distributed/ranks.h"
#include "tests/support/throws.h"
#include "tests/train/support.h"

/// Runs that several ranks share, which are threads here.
namespace lighthouse::train {
namespace {

using distributed::ExchangeChoice;
using run::dense_stage;
using run::Recipe;
using run::timed_stage;
using testing::throws;

class RanksTest : public TrainerTest {
 protected:
  void SetUp() override {
    if (testing::device().is_cuda()) GTEST_SKIP() << "threads cannot share a GPU's streams";
  }

  /// Trains on `ranks` ranks, and returns what the first said.
  std::string train_on(int64_t ranks, const Recipe& recipe, const Start& start = {}) {
    const StopSignals outermost;  // puts back what the trainers leave, in whichever order they end
    std::ostringstream out;
    testing::run_ranks(ranks, [&](const distributed::World& world) {
      std::ostringstream unheard;
      std::ostream& said = world.is_first() ? out : unheard;
      EXPECT_EQ(train::train(recipe, start, said, false, steady_seconds, world), 0);
      EXPECT_EQ(unheard.str(), "");
    });
    return out.str();
  }
};

/// Two ranks for the sequences, times two for each sequence.
TEST_F(RanksTest, ResumeToTheSameBits) {
  Recipe two = recipe(dense_stage("s", 6));
  two.run.keep_checkpoints = 10;
  two.parallel.context = 2;
  train_on(4, two);
  const run::Checkpoint last = run::read_checkpoint(checkpoint(6));
  EXPECT_EQ(last.ranks, 4);
  const double loss = metrics().steps.back().loss;

  train_on(4, two, {.from = checkpoint(3)});
  EXPECT_TRUE(run::read_checkpoint(checkpoint(6))
                  .model.at("lm_head.weight")
                  .equal(last.model.at("lm_head.weight")));

  // Another number of ranks, and no context: to rounding.
  two.parallel = {};
  const std::string said = train(two, {.from = checkpoint(3)});
  EXPECT_NE(said.find("made by 4 ranks, this run has 1"), std::string::npos) << said;
  EXPECT_NEAR(metrics().steps.back().loss, loss, 1e-4);
}

/// Steps of every attention; 50 in all. The first layer of Lighthouse is dense: there equal tokens
/// have equal scores, of which rounding selects one.
constexpr const char* kStages =
    "[[stage]]\nname = 'dense'\nsteps = 16\ncontext = 128\nbatch = 4\n"
    "[[stage]]\nname = 'lighthouse'\nsteps = 18\ncontext = 256\nbatch = 2\nlocal = 32\n"
    "attention = 'lighthouse'\nlevels = 3\npooling_factor = 4\nbudget = 8\ntile_budget = 4\n"
    "dense_layers = [0]\ndense_share = 0.25\ndense_context = 64\n"
    "[[stage]]\nname = 'local'\nsteps = 16\ncontext = 256\nbatch = 2\nlocal = 32\n"
    "attention = 'local'\n";

/// The largest differences of two runs' figures.
struct Differences {
  double loss = 0, grad_norm = 0, held_out = 0;
};

Differences differences(const run::MetricsHistory& a, const run::MetricsHistory& b) {
  Differences most;
  const auto widen = [](double& bound, double x, double y) {
    bound = std::max(bound, std::abs(x - y));
  };
  EXPECT_EQ(a.steps.size(), b.steps.size());
  EXPECT_EQ(a.evals.size(), b.evals.size());
  for (size_t i = 0; i < std::min(a.steps.size(), b.steps.size()); ++i) {
    EXPECT_EQ(a.steps[i].tokens, b.steps[i].tokens);
    widen(most.loss, a.steps[i].loss, b.steps[i].loss);
    widen(most.grad_norm, a.steps[i].grad_norm, b.steps[i].grad_norm);
  }
  for (size_t i = 0; i < std::min(a.evals.size(), b.evals.size()); ++i) {
    widen(most.held_out, a.evals[i].dense_loss, b.evals[i].dense_loss);
    widen(most.held_out, a.evals[i].trained_loss, b.evals[i].trained_loss);
  }
  return most;
}

struct Way {
  int64_t ranks, context;
  ExchangeChoice exchange;
  bool shard;
};

class SharedRun : public RanksTest {
 protected:
  /// Trains 50 steps in every way and in one process.
  void expect_losses_of_one_process(const std::string& stages, const std::vector<Way>& ways,
                                    bool within = false) {
    const auto run_of = [&](const std::string& name) {
      Recipe r = within ? within_documents(stages, name) : recipe(stages, name);
      r.run.checkpoint_every_steps = 100;
      r.run.eval_every_steps = 10;
      return r;
    };
    train(run_of("one"));
    const run::MetricsHistory one = metrics("one");
    EXPECT_EQ(one.steps.size(), 50u);
    // What roundings come to over these steps, in one process that only adds gradients up in
    // another order. Ranks do so too, and add up the parts of sums over tokens: ten times that.
    Recipe in_parts = run_of("parts");
    for (run::StageRecipe& stage : in_parts.stages) stage.micro_batch = 1;
    train(in_parts);
    const Differences roundings = differences(one, metrics("parts"));
    EXPECT_LT(roundings.loss, 1e-3) << "too many to tell a mistake from them";
    for (const Way& way : ways) {
      const std::string name = message(way.ranks, "-ranks-context-", way.context, "-",
                                       to_string(way.exchange), way.shard ? "" : "-whole");
      SCOPED_TRACE(name);
      Recipe shared = run_of(name);
      shared.parallel = {
          .context = way.context, .exchange = way.exchange, .shard_optimizer = way.shard};
      train_on(way.ranks, shared);
      const Differences found = differences(one, metrics(name));
      EXPECT_LE(found.loss, 10 * roundings.loss);
      EXPECT_LE(found.grad_norm, 10 * roundings.grad_norm);
      EXPECT_LE(found.held_out, 10 * roundings.held_out);
    }
  }
};

/// By heads the result is one process's in any attention.
TEST_F(SharedRun, HasTheLossesOfOneProcessInEveryAttention) {
  expect_losses_of_one_process(kStages, {{2, 1, ExchangeChoice::kAuto, true},
                                         {2, 2, ExchangeChoice::kHeads, true},
                                         {4, 2, ExchangeChoice::kHeads, false}});
}

/// The ranks' rows have different numbers of tokens that count; auto is by heads.
TEST_F(SharedRun, HasTheLossesOfOneProcessWithinDocuments) {
  expect_losses_of_one_process(
      kStages, {{2, 1, ExchangeChoice::kAuto, true}, {4, 2, ExchangeChoice::kAuto, false}},
      /*within=*/true);
}

/// Four ranks do not divide the two heads: auto is a gather.
TEST_F(SharedRun, HasTheLossesOfOneProcessByRingAndGather) {
  expect_losses_of_one_process(dense_stage("dense", 50), {{2, 2, ExchangeChoice::kRing, false},
                                                          {4, 4, ExchangeChoice::kAuto, true}});
}

/// Chunks select by themselves, so no one process is the reference: the two are each other's.
TEST_F(SharedRun, IsTheSameByRingAndByGatherWithLighthouse) {
  Recipe r = recipe(kStages, "ring");
  r.stages.erase(r.stages.begin());  // the dense one
  for (run::StageRecipe& stage : r.stages) stage.steps = 6;
  r.parallel = {.context = 2, .exchange = ExchangeChoice::kRing};
  train_on(2, r);
  r.run.out = (folder / "gather").string();
  r.parallel.exchange = ExchangeChoice::kGather;
  train_on(2, r);
  EXPECT_EQ(metrics("ring").steps.size(), 12u);
  const Differences found = differences(metrics("ring"), metrics("gather"));
  EXPECT_LE(found.loss, 1e-4);  // only roundings part them
  EXPECT_LE(found.held_out, 1e-4);
}

TEST_F(RanksTest, TrainBySeconds) {
  train_on(2, recipe(timed_stage("a", 0.05) + timed_stage("b", 0.05)));
  EXPECT_EQ(metrics().steps.back().stage, "b");
}

TEST_F(RanksTest, FailTogether) {
  Recipe r = recipe(dense_stage("s", 1));
  r.stages[0].batch = 3;
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train_on(2, r); },
                                            {"stage.0.batch is 3", "multiple of the 2 ranks"}));
  r.parallel.context = 3;
  r.stages[0].context = 120;
  EXPECT_TRUE(throws<std::invalid_argument>([&] { train_on(2, r); },
                                            {"parallel.context is 3", "must divide the 2 ranks"}));
  r = recipe(dense_stage("s", 1));
  r.stages[0].batch = 12;
  r.stages[0].micro_batch = 4;
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { train_on(2, r); }, {"stage.0.micro_batch is 4", "divide the 6 sequences"}));
  r = recipe(dense_stage("s", 1));
  train(r);
  std::atomic<int> told = 0;
  testing::run_ranks(2, [&](const distributed::World& world) {
    std::ostringstream out;
    const auto act = [&] { train::train(r, {}, out, false, steady_seconds, world); };
    told += world.is_first() ? throws<std::invalid_argument>(act, {"already exists"})
                             : throws<distributed::PeerError>(act, {"rank 0"});
  });
  EXPECT_EQ(told, 2);
}

/// A checkpoint is that of one process, whatever number of ranks made it.
TEST_F(RanksTest, GoOnFromTheCheckpointOfAnyOtherNumber) {
  Recipe one = recipe(dense_stage("s", 8), "one");
  one.stages[0].batch = 4;
  one.run.keep_checkpoints = 10;
  train(one);
  Recipe many = one;
  many.run.out = (folder / "many").string();
  train(many);
  train_on(2, many, {.from = checkpoint(2, "many")});
  train_on(4, many, {.from = checkpoint(4, "many")});
  const auto bytes = [&] {
    return io::read_file(checkpoint(8, "many") / "model.safetensors") +
           io::read_file(checkpoint(8, "many") / "optimizer.safetensors");
  };
  const std::string by_four = bytes();
  train_on(4, many, {.from = checkpoint(6, "many")});
  EXPECT_EQ(bytes(), by_four);
  train(many, {.from = checkpoint(6, "many")});

  for (const auto& [step, ranks] : std::map<int64_t, int64_t>{{2, 1}, {4, 2}, {6, 4}, {8, 1}}) {
    EXPECT_EQ(run::read_checkpoint(checkpoint(step, "many")).ranks, ranks) << step;
  }
  const auto alone = metrics("one"), shared = metrics("many");
  ASSERT_EQ(shared.steps.size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(shared.steps[i].loss, alone.steps[i].loss, 1e-4) << i;  // only roundings part them
  }
  const auto shapes = [&](const std::string& out) {
    const run::Checkpoint made = run::read_checkpoint(checkpoint(6, out));
    std::map<std::string, std::vector<int64_t>> all;
    for (const auto& [name, tensor] : made.model) all[name] = tensor.sizes().vec();
    for (const auto& [name, tensor] : made.optimizer)
      all[name + " of AdamW"] = tensor.sizes().vec();
    return all;
  };
  EXPECT_EQ(shapes("many"), shapes("one"));
  Recipe branched = many;
  branched.run.out = (folder / "branched").string();
  train(branched, {.branch = checkpoint(6, "many")});
  EXPECT_EQ(metrics("branched").steps.back().loss, shared.steps.back().loss);
}

TEST_F(RanksTest, EndWhereOneHasNoMemoryLeft) {
  Recipe r = recipe(dense_stage("s", 8));
  r.stages[0].batch = 3;
  const StopSignals outermost;
  std::atomic<int> ended = 0;
  testing::run_ranks(3, [&](const distributed::World& world) {
    int asked = 0;
    const Clock clock = [&] {
      if (world.rank() == 1 && ++asked == 7) throw std::bad_alloc();  // as the fourth step begins
      return steady_seconds();
    };
    std::ostringstream out;
    const auto act = [&] { train::train(r, {}, out, false, clock, world); };
    ended += world.rank() == 1 ? throws<std::bad_alloc>(act, {})
                               : throws<distributed::PeerError>(act, {"one of them ended"});
  });
  EXPECT_EQ(ended, 3);
  EXPECT_EQ(run::read_checkpoint(
                run::Checkpoints(run::RunFolder(folder / "run").checkpoints()).list().back())
                .step,
            3);
}

}  // namespace
}  // namespace lighthouse::train
