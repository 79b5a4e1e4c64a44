#include <algorithm>
#include <cmath>
#include <random>

#include "lighthouse/core/check.h"
#include "lighthouse/run/metrics.h"
#include "tests/apps/process.h"

namespace lighthouse::app {
namespace {

using run::MetricsHistory;
using run::read_metrics;
using run::Recipe;
using run::StepMetrics;

TEST_F(ProcessTest, KilledAtAnyMomentAndResumedItGivesTheSameBits) {
  finish("whole", false);
  std::random_device random;
  std::string moments;
  for (const int64_t from : {0, 3, 9, 15}) {
    const auto lines = from + static_cast<int64_t>(random() % 6);
    const auto wait = microseconds(random() % 8000);
    moments += ' ' + std::to_string(wait.count()) + " us after line " + std::to_string(lines);
    Program training(arguments("killed", fs::exists(folder / "killed")), folder / "output");
    wait_for_lines(training, "killed", lines);
    std::this_thread::sleep_for(wait);
    training.kill(SIGKILL);
    training.wait();
  }
  SCOPED_TRACE("killed" + moments);
  finish("killed", true);
  expect_same_runs("whole", "killed");
}

TEST_F(ProcessTest, KilledWhileItWritesACheckpointItGivesTheSameBits) {
  finish("whole", false);
  const fs::path checkpoints = RunFolder(folder / "killed").checkpoints();
  const auto is_writing = [&] {
    std::error_code error;  // the folder may not be there yet, and its entries come and go
    for (fs::directory_iterator it(checkpoints, error), end; !error && it != end;
         it.increment(error)) {
      if (it->path().filename().string().starts_with(".partial-step-")) return true;
    }
    return false;
  };
  int in_the_middle = 0;
  for (int i = 0; i < 6; ++i) {
    Program training(arguments("killed", fs::exists(folder / "killed")), folder / "output");
    while (training.running() && !is_writing()) {
    }
    training.kill(SIGKILL);
    training.wait();
    in_the_middle += is_writing() ? 1 : 0;
  }
  EXPECT_GT(in_the_middle, 0);  // else this test has tested nothing
  finish("killed", true);
  expect_same_runs("whole", "killed");
}

TEST_F(ProcessTest, WhereADiskIsFullTheCheckpointsBeforeItStay) {
  finish("whole", false);
  const auto train = [&](const std::vector<std::string>& more, rlim_t largest_file) {
    auto all = arguments("full", fs::exists(folder / "full"));
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output", largest_file).wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  const auto checkpoints = [&] {
    return Checkpoints(RunFolder(folder / "full").checkpoints()).list();
  };
  ASSERT_EQ(train({"--set", "run.keep_checkpoints=100"}, 0), 0) << said();
  for (const fs::path& path : checkpoints()) {
    if (read_checkpoint(path).step > 10) fs::remove_all(path);
  }
  const fs::path before = checkpoints().back();

  // Room for metrics, not for a model.
  const auto model = static_cast<rlim_t>(fs::file_size(before / "model.safetensors"));
  EXPECT_EQ(train({}, model - 1), 2);
  EXPECT_NE(said().find("WARNING: the checkpoint after step 11 could not be written: cannot write"),
            std::string::npos)
      << said();
  EXPECT_NE(said().find("those before it are kept"), std::string::npos) << said();
  EXPECT_NE(said().find("lighthouse: the checkpoint after step 22 could not"), std::string::npos)
      << said();
  EXPECT_EQ(metrics("full"), metrics("whole"));
  EXPECT_EQ(checkpoints().back(), before);
  for (const auto& entry : fs::directory_iterator(RunFolder(folder / "full").checkpoints())) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("step-")) << entry.path();
  }

  // With room again, it goes on as if nothing had been.
  ASSERT_EQ(train({}, 0), 0) << said();
  expect_same_runs("whole", "full");
}

TEST_F(ProcessTest, AFileThatVanishedIsNamed) {
  finish("run", false);
  const fs::path newest = Checkpoints(RunFolder(folder / "run").checkpoints()).list().back();
  const auto resume = [&] { return Program(arguments("run", true), folder / "output").wait(); };
  fs::rename(newest / "optimizer.safetensors", folder / "optimizer.safetensors");
  EXPECT_EQ(resume(), 2);
  const std::string said = io::read_file(folder / "output");
  EXPECT_NE(said.find((newest / "optimizer.safetensors").string()), std::string::npos) << said;
  EXPECT_NE(said.find("the one before it is '"), std::string::npos) << said;
  fs::rename(folder / "optimizer.safetensors", newest / "optimizer.safetensors");
  fs::remove(folder / "text");
  EXPECT_EQ(resume(), 2);
  EXPECT_NE(io::read_file(folder / "output").find((folder / "text").string() + "', which is gone"),
            std::string::npos)
      << io::read_file(folder / "output");
}

TEST_F(ProcessTest, ASignalEndsTheRunAfterTheStepWithACheckpoint) {
  // So long that it cannot end before the signal comes, nor make a checkpoint for another reason.
  int64_t lines = 0;
  for (const int signal : {SIGTERM, SIGUSR1}) {
    auto all = arguments("run", lines > 0);
    all.insert(all.end(), {"--set", "stage.1.steps=1000000", "--set", "stage.0.steps=100000",
                           "--set", "run.checkpoint_every_steps=1000000"});
    Program training(all, folder / "output");
    wait_for_lines(training, "run", lines + 3);
    if (lines == 0) {  // meanwhile no other process gets the run
      EXPECT_EQ(Program(arguments("run", true), folder / "second").wait(), 2);
      const std::string said = io::read_file(folder / "second");
      EXPECT_NE(said.find("lighthouse: the run's folder '" + (folder / "run").string() +
                          "' is in use by process " + std::to_string(training.id()) + " on "),
                std::string::npos)
          << said;
    }
    training.kill(signal);
    const int status = training.wait();
    const std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, 128 + signal) << said;
    EXPECT_NE(said.find("lighthouse train " + (folder / "run/recipe.toml").string() + " --resume"),
              std::string::npos)
        << said;

    const auto written = metrics("run");
    EXPECT_GE(static_cast<int64_t>(written.size()), lines + 3);
    lines = static_cast<int64_t>(written.size());
    const auto checkpoints = Checkpoints(RunFolder(folder / "run").checkpoints()).list();
    ASSERT_FALSE(checkpoints.empty()) << said;
    const int64_t step = read_checkpoint(checkpoints.back()).step;
    EXPECT_EQ(nlohmann::json::parse(written.back()).at("step"), step);
  }
}

TEST_F(ProcessTest, ACopyOfARunIsResumedWhereItLies) {
  finish("run", false);
  fs::copy(folder / "run", folder / "copy", fs::copy_options::recursive);
  fs::remove_all(Checkpoints(RunFolder(folder / "copy").checkpoints()).list().back());
  fs::remove(RunFolder(folder / "copy").summary());
  const auto written = fs::last_write_time(RunFolder(folder / "run").metrics());
  Program training({"train", folder / "copy/recipe.toml", "--threads", "2", "--resume"},
                   folder / "output");
  ASSERT_EQ(training.wait(), 0) << io::read_file(folder / "output");
  EXPECT_EQ(fs::last_write_time(RunFolder(folder / "run").metrics()), written);
  EXPECT_EQ(Recipe::read(folder / "copy/recipe.toml").run.out, folder / "copy");
  expect_same_runs("run", "copy");
}

/// Losses of a small run, to the bit: with the instructions of libraries fixed they are the same on
/// every x86-64 processor. LIGHTHOUSE_GOLDEN=write writes them anew.
TEST_F(ProcessTest, LossesAreThoseOfTheGoldenRun) {
  const fs::path golden = fs::path(LIGHTHOUSE_GOLDEN_RUN);
  ::setenv("ATEN_CPU_CAPABILITY", "default", 1);
  ::setenv("MKL_CBWR", "COMPATIBLE", 1);
  Program training({"train", golden / "recipe.toml", "--threads", "1", "--set",
                    "data.path=" + (folder / "text").string(), "--out", folder / "golden"},
                   folder / "output");
  ::unsetenv("ATEN_CPU_CAPABILITY");
  ::unsetenv("MKL_CBWR");
  ASSERT_EQ(training.wait(), 0) << io::read_file(folder / "output");
  const MetricsHistory history = read_metrics(RunFolder(folder / "golden").metrics());
  std::vector<double> losses;
  for (const StepMetrics& step : history.steps) losses.push_back(step.loss);
  losses.push_back(history.evals.back().dense_loss);
  if (const char* what = std::getenv("LIGHTHOUSE_GOLDEN"); what && what == std::string("write")) {
    io::write_atomically(golden / "losses.json", nlohmann::json(losses).dump(1) + '\n');
  }
  const auto expected =
      nlohmann::json::parse(io::read_file(golden / "losses.json")).get<std::vector<double>>();
  ASSERT_EQ(losses.size(), expected.size());
#ifdef __SANITIZE_ADDRESS__
  constexpr double kBound = 1e-4;  // code built for sanitizers may round otherwise
#else
  constexpr double kBound = 0;
#endif
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_LE(std::abs(losses[i] - expected[i]), kBound * expected[i]) << "step " << i + 1;
  }
}

TEST_F(ProcessTest, ADryRunLeavesNothing) {
  auto all = arguments("dry", false);
  all.emplace_back("--dry-run");
  Program training(all, folder / "output");
  EXPECT_EQ(training.wait(), 0);
  EXPECT_FALSE(fs::exists(folder / "dry"));
  EXPECT_NE(io::read_file(folder / "output").find("lighthouse"), std::string::npos);
}

}  // namespace
}  // namespace lighthouse::app
