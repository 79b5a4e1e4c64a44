#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <map>
#include <memory>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/connect.h"
#include "lighthouse/run/metrics.h"
#include "tests/apps/ranks.h"

namespace lighthouse::app {
namespace {

using run::read_metrics;

/// Several processes of `lighthouse train`, started as a launcher does.
class RanksProcessTest : public ProcessTest {
 protected:
  RanksProcessTest() { ::setenv("OMP_NUM_THREADS", "1", 1); }
  ~RanksProcessTest() override {
    for (const auto& [name, value] : variables_) ::unsetenv(name.c_str());
    ::unsetenv("OMP_NUM_THREADS");
  }

  using Options = std::vector<std::string>;
  struct Job {
    int64_t size;
    Options options = {};                  ///< of all ranks
    std::map<int64_t, Options> more = {};  ///< of some of them
    bool is_served = true;                 ///< the launcher serves their store, and not rank 0
    rlim_t largest_file = 0;               ///< that rank 0 can write
  };
  using Ranks = std::vector<std::unique_ptr<Program>>;

  /// They train the recipe in folder / "run".
  Ranks start(const Job& job) {
    if (job.is_served) {
      c10d::TCPStoreOptions options;
      options.port = 0;
      options.isServer = true;
      options.waitWorkers = false;
      store_ = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    }
    variables_ = {{"WORLD_SIZE", std::to_string(job.size)},
                  {"MASTER_ADDR", "127.0.0.1"},
                  {"MASTER_PORT", std::to_string(job.is_served ? store_->getPort() : free_port())},
                  {"TORCHELASTIC_USE_AGENT_STORE", job.is_served ? "True" : "False"}};
    Ranks ranks;
    for (int64_t rank = 0; rank < job.size; ++rank) {
      variables_["RANK"] = variables_["LOCAL_RANK"] = std::to_string(rank);
      for (const auto& [name, value] : variables_) ::setenv(name.c_str(), value.c_str(), 1);
      Options all{"train", folder / "recipe.toml", "--threads", "1", "--out", folder / "run"};
      all.insert(all.end(), job.options.begin(), job.options.end());
      if (const auto found = job.more.find(rank); found != job.more.end()) {
        all.insert(all.end(), found->second.begin(), found->second.end());
      }
      ranks.push_back(
          std::make_unique<Program>(all, output(rank), rank == 0 ? job.largest_file : 0));
    }
    return ranks;
  }

  /// What they exit with.
  static std::vector<int> wait(const Ranks& ranks) {
    std::vector<int> statuses;
    for (const auto& rank : ranks) statuses.push_back(rank->wait());
    return statuses;
  }
  using Statuses = std::vector<int>;

  void write_recipe(int steps, int64_t batch) const {
    std::ofstream(folder / "recipe.toml")
        << recipe_head(folder / "text")
        << "[[stage]]\nname = 'stage'\ncontext = 128\nsteps = " << steps << "\nbatch = " << batch
        << '\n';
  }
  static constexpr int kEndless = 100'000'000;

  fs::path output(int64_t rank) const { return folder / message("output of ", rank); }
  std::string said(int64_t rank) const { return io::read_file(output(rank)); }

  /// The only complaint in all that the ranks say is that of one of them, and begins so.
  void expect_complaint(int64_t ranks, int64_t rank, const std::string& begin) const {
    for (int64_t i = 0; i < ranks; ++i) {
      const std::string text = said(i), mark = "lighthouse: ";
      const size_t at = text.find(mark);
      if (i != rank) {
        EXPECT_EQ(at, std::string::npos) << "rank " << i << " says:\n" << text;
        continue;
      }
      ASSERT_NE(at, std::string::npos) << "rank " << i << " says:\n" << text;
      EXPECT_TRUE(text.substr(at + mark.size()).starts_with(begin)) << text;
      EXPECT_EQ(text.find(mark, at + 1), std::string::npos) << text;
    }
  }

  fs::path newest() const {
    return Checkpoints(RunFolder(folder / "run").checkpoints()).list().back();
  }
  int64_t count_lines() const {
    const std::string text = io::read_file(RunFolder(folder / "run").metrics());
    return std::count(text.begin(), text.end(), '\n');
  }
  run::MetricsHistory metrics() const { return read_metrics(RunFolder(folder / "run").metrics()); }

 private:
  std::map<std::string, std::string> variables_;
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

std::string on_this_host(int64_t rank, int64_t size) {
  return message("rank ", rank, " of ", size, " on ", distributed::host_name());
}

/// A checkpoint of several ranks is one of one process.
TEST_F(RanksProcessTest, TrainOneModelThatAllVerbsRead) {
  write_recipe(4, 4);
  const Ranks ranks = start({.size = 4, .is_served = false});
  EXPECT_EQ(wait(ranks), Statuses(4, 0)) << said(0);
  EXPECT_NE(said(0).find("summary:"), std::string::npos);
  for (int64_t rank = 1; rank < 4; ++rank) EXPECT_EQ(said(rank), "");  // the first one tells
  EXPECT_EQ(metrics().steps.size(), 4u);
  EXPECT_EQ(read_checkpoint(newest()).ranks, 4);

  for (const char* name : {"RANK", "WORLD_SIZE"}) ::unsetenv(name);
  const fs::path run = folder / "run";  // a message quotes a path
  const Said read = shell(message("lighthouse eval ", run, " --sequences 1 --cuts 0 2>&1 && ",
                                  "lighthouse export ", run, ' ', folder / "exported", " 2>&1 && ",
                                  "lighthouse compare ", run, ' ', run, " 2>&1"));
  EXPECT_EQ(read.status, 0) << read.text;
  EXPECT_TRUE(fs::exists(folder / "exported/model.safetensors"));
}

/// The store that they met in goes on, as that of torchrun does.
TEST_F(RanksProcessTest, EndWhereOneIsKilledAndOthersGoOnFromTheCheckpoint) {
  write_recipe(kEndless, 6);
  Ranks ranks = start({.size = 3});
  wait_for_lines(*ranks[0], "run", 4);
  ranks[2]->kill(SIGKILL);
  EXPECT_EQ(wait(ranks), (Statuses{2, 2, -1}));
  expect_complaint(3, 0, message("no sign of life from ", on_this_host(2, 3), ": killed, hanging"));
  const int64_t step = read_checkpoint(newest()).step, lines = count_lines();

  // A launcher may ask one of them alone to stop.
  ranks = start({.size = 2, .options = {"--resume"}});
  wait_for_lines(*ranks[0], "run", lines + 4);
  ranks[1]->kill(SIGTERM);
  EXPECT_EQ(wait(ranks), Statuses(2, 128 + SIGTERM)) << said(0);
  EXPECT_NE(said(0).find("made by 3 ranks, this run has 2"), std::string::npos) << said(0);
  EXPECT_GT(read_checkpoint(newest()).step, step);
  EXPECT_EQ(read_checkpoint(newest()).step, metrics().steps.back().step);
}

TEST_F(RanksProcessTest, EndWhereTheFirstIsKilledWhichServesTheirStore) {
  write_recipe(kEndless, 2);
  const Ranks ranks = start({.size = 2, .is_served = false});
  wait_for_lines(*ranks[0], "run", 4);
  ranks[0]->kill(SIGKILL);
  EXPECT_EQ(wait(ranks), (Statuses{-1, 2}));
  expect_complaint(2, 1, "no sign of life from rank 0 at 127.0.0.1:");
  EXPECT_GT(read_checkpoint(newest()).step, 0);
}

TEST_F(RanksProcessTest, EndWhereOneHangsForLongerThanTheTimeout) {
  write_recipe(kEndless, 2);
  const Ranks ranks = start({.size = 2, .options = {"--set", "parallel.timeout=8"}});
  wait_for_lines(*ranks[0], "run", 4);
  ranks[1]->kill(SIGSTOP);
  EXPECT_EQ(ranks[0]->wait(), 2);
  expect_complaint(2, 0, message("no sign of life from ", on_this_host(1, 2), ": killed, hanging"));
  EXPECT_GT(read_checkpoint(newest()).step, 0);
}

TEST_F(RanksProcessTest, SayOnceWhatAllGetWrong) {
  const Ranks ranks = start({.size = 2, .options = {"--set", "optimizer.lrr=1"}});
  EXPECT_EQ(wait(ranks), Statuses(2, 2));
  expect_complaint(2, 0, on_this_host(0, 2) + ": ");
  EXPECT_NE(said(0).find("optimizer.lrr"), std::string::npos) << said(0);
}

TEST_F(RanksProcessTest, RefuseARankWithAnotherRecipe) {
  const Ranks ranks = start({.size = 2, .more = {{1, {"--set", "optimizer.lr=0.5"}}}});
  EXPECT_EQ(wait(ranks), Statuses(2, 2));
  const std::string host = distributed::host_name();
  expect_complaint(2, 0,
                   on_this_host(0, 2) + ": optimizer.lr is 0.5 on rank 1 (" + host +
                       "), and 0.01 on rank 0 (" + host + ")");
  EXPECT_FALSE(fs::exists(folder / "run"));
}

TEST_F(RanksProcessTest, RefuseARankWithOtherData) {
  run::write_text(folder / "other", 2);
  const Ranks ranks = start(
      {.size = 2, .more = {{1, {"--set", message("data.path=", (folder / "other").string())}}}});
  EXPECT_EQ(wait(ranks), Statuses(2, 2));
  expect_complaint(2, 0, on_this_host(0, 2) + ": the fingerprint of the data is ");
  EXPECT_FALSE(fs::exists(folder / "run"));
}

TEST_F(RanksProcessTest, PointToTheOneThatFails) {
  const Ranks ranks = start({.size = 2, .more = {{1, {"--set", "data.path=/nowhere"}}}});
  EXPECT_EQ(wait(ranks), Statuses(2, 2));
  const std::string why = "the data '/nowhere' (data.path) does not exist\n";
  const std::string first = on_this_host(0, 2), second = on_this_host(1, 2);
  EXPECT_EQ(said(1), message("lighthouse: ", second, ": ", why));
  EXPECT_TRUE(
      said(0).ends_with(message("lighthouse: ", first, " ends because ", second, " failed: ", why)))
      << said(0);
}

TEST_F(RanksProcessTest, EndWhereTheDiskIsFull) {
  write_recipe(4, 2);
  // Room for the text, which is at most 40 kB, and not for the 12880 weights of the model.
  const Ranks ranks = start({.size = 2, .largest_file = 48'000});
  EXPECT_EQ(wait(ranks), Statuses(2, 2));
  EXPECT_NE(said(0).find("WARNING: the checkpoint after step 1 could not be written"),
            std::string::npos)
      << said(0);
  expect_complaint(2, 0, on_this_host(0, 2) + ": the checkpoint after step 4 could not be written");
  EXPECT_TRUE(fs::is_empty(RunFolder(folder / "run").checkpoints()));
}

TEST_F(RanksProcessTest, AreStartedAgainByTorchrunAndStoppedWithACheckpoint) {
  write_recipe(kEndless, 2);
  Program torchrun({"-m", "torch.distributed.run", "--no-python", "--standalone",
                    "--nproc-per-node=2", "--max-restarts=1", LIGHTHOUSE_PROGRAM, "train",
                    folder / "recipe.toml", "--threads", "1", "--out", folder / "run"},
                   output(0), 0, LIGHTHOUSE_TEST_PYTHON);
  const auto first_rank = [&] {
    const std::string holder = io::read_file(RunFolder(folder / "run").lock());
    return holder.empty() ? 0 : std::stoi(holder.substr(std::string("process ").size()));
  };
  wait_for_lines(torchrun, "run", 4);
  const int killed = first_rank();
  ASSERT_GT(killed, 0) << said(0);
  ::kill(killed, SIGKILL);
  while (torchrun.running() && (first_rank() == killed || first_rank() == 0)) {
    std::this_thread::sleep_for(microseconds(1000));
  }
  wait_for_lines(torchrun, "run", count_lines() + 4);
  torchrun.kill(SIGTERM);
  EXPECT_NE(torchrun.wait(), 0);
  EXPECT_NE(said(0).find("started again by its launcher: the run goes on"), std::string::npos)
      << said(0);
  EXPECT_NE(said(0).find("stopped, with a checkpoint in"), std::string::npos) << said(0);
  EXPECT_EQ(read_checkpoint(newest()).step, metrics().steps.back().step);
  EXPECT_GE(read_checkpoint(newest()).step, 5);
}

}  // namespace
}  // namespace lighthouse::app
