#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "lighthouse/train/checkpoint.h"
#include "lighthouse/train/metrics.h"
#include "lighthouse/train/run_folder.h"
#include "tests/train/support.h"

namespace lighthouse::train {
namespace {

namespace fs = std::filesystem;
using std::chrono::microseconds;

/// The program as a process of its own; what it says goes to a file.
class Program {
 public:
  /// @param largest_file in bytes: beyond it writing fails, as on a full disk; 0: no limit
  Program(const std::vector<std::string>& arguments, const fs::path& output,
          rlim_t largest_file = 0) {
    std::vector<std::string> all{LIGHTHOUSE_PROGRAM};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    argv.reserve(all.size() + 1);
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      const int fd = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
      ::dup2(fd, STDOUT_FILENO);
      ::dup2(fd, STDERR_FILENO);
      if (largest_file > 0) {
        const rlimit limit{largest_file, largest_file};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        ::signal(SIGXFSZ, SIG_IGN);  // the write fails instead
      }
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Program() {
    kill(SIGKILL);
    wait();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void kill(int signal) const {
    if (running_) ::kill(pid_, signal);
  }
  bool running() {
    if (running_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) running_ = false;
    return running_;
  }
  /// The status that it exits with; -1 where a signal ended it.
  int wait() {
    if (running_) ::waitpid(pid_, &status_, 0);
    running_ = false;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
  }

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool running_ = true;
};

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    // Threads that spin while they wait take the cores from those of other tests.
    ::setenv("OMP_WAIT_POLICY", "passive", 1);
    write_text(folder / "text");
    std::ofstream(folder / "recipe.toml")
        << recipe_head(folder / "text") << kLighthouseStage << dense_stage("dense", 12);
  }

  std::vector<std::string> arguments(const std::string& out, bool resume) const {
    std::vector<std::string> all{"train",     folder / "recipe.toml", "--threads", "2", "--out",
                                 folder / out};
    if (resume) all.emplace_back("--resume");
    return all;
  }

  /// Trains to the end.
  void finish(const std::string& out, bool resume) {
    Program training(arguments(out, resume), folder / "output");
    ASSERT_EQ(training.wait(), 0) << io::read_file(folder / "output");
  }

  /// Waits until the run has written that many lines of metrics, or has ended.
  void wait_for_lines(Program& training, const std::string& out, int64_t lines) const {
    const fs::path path = RunFolder(folder / out).metrics();
    while (training.running()) {
      if (fs::exists(path)) {
        const std::string text = io::read_file(path);
        if (std::count(text.begin(), text.end(), '\n') >= lines) return;
      }
      std::this_thread::sleep_for(microseconds(200));
    }
  }

  /// All files of the last checkpoint but the sum of the state, and the state without its times.
  std::vector<std::string> last_checkpoint(const std::string& out) const {
    const fs::path path = Checkpoints(RunFolder(folder / out).checkpoints()).list().back();
    std::vector<std::string> contents{path.filename()};
    for (const char* name : {"model.safetensors", "optimizer.safetensors", "random.safetensors"}) {
      contents.push_back(io::read_file(path / name));
    }
    auto state = nlohmann::json::parse(io::read_file(path / "state.json"));
    state.erase("seconds");
    contents.push_back(state.dump());
    return contents;
  }

  /// The lines of the metrics without their times.
  std::vector<std::string> metrics(const std::string& out) const {
    std::ifstream file(RunFolder(folder / out).metrics());
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
      auto json = nlohmann::ordered_json::parse(line);
      json.erase("seconds");
      json.erase("tokens_per_second");
      json.erase("memory_bytes");
      lines.push_back(json.dump());
    }
    return lines;
  }

  void expect_same_runs(const std::string& a, const std::string& b) const {
    EXPECT_TRUE(last_checkpoint(a) == last_checkpoint(b));
    EXPECT_EQ(metrics(a), metrics(b));
    EXPECT_TRUE(fs::exists(RunFolder(folder / b).summary()));
    for (const auto& entry : fs::directory_iterator(RunFolder(folder / b).checkpoints())) {
      EXPECT_TRUE(entry.path().filename().string().starts_with("step-")) << entry.path();
    }
  }

  const Folder folder;
};

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
  EXPECT_NE(said.find("--resume-from"), std::string::npos) << said;
  fs::rename(folder / "optimizer.safetensors", newest / "optimizer.safetensors");
  fs::remove(folder / "text");
  EXPECT_EQ(resume(), 2);
  EXPECT_NE(io::read_file(folder / "output").find((folder / "text").string() + "' does not exist"),
            std::string::npos)
      << io::read_file(folder / "output");
}

TEST_F(ProcessTest, ASignalEndsTheRunAfterTheStepWithACheckpoint) {
  // So long that it cannot end before the signal comes, nor make a checkpoint for another reason.
  int64_t lines = 0;
  for (const int signal : {SIGTERM, SIGINT}) {
    auto all = arguments("run", lines > 0);
    all.insert(all.end(), {"--set", "stage.1.steps=1000000", "--set", "stage.0.steps=100000",
                           "--set", "run.checkpoint_every_steps=1000000"});
    Program training(all, folder / "output");
    wait_for_lines(training, "run", lines + 3);
    training.kill(signal);
    const int status = training.wait();
    const std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, 128 + signal) << said;
    EXPECT_NE(said.find("--resume --out " + (folder / "run").string()), std::string::npos) << said;

    const auto written = metrics("run");
    EXPECT_GE(static_cast<int64_t>(written.size()), lines + 3);
    lines = static_cast<int64_t>(written.size());
    const auto checkpoints = Checkpoints(RunFolder(folder / "run").checkpoints()).list();
    ASSERT_FALSE(checkpoints.empty()) << said;
    const int64_t step = read_checkpoint(checkpoints.back()).step;
    EXPECT_EQ(nlohmann::json::parse(written.back()).at("step"), step);
  }
}

TEST_F(ProcessTest, EvalMeasuresARun) {
  finish("run", false);
  const auto eval = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{"eval", folder / "run"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  ASSERT_EQ(eval({"--sequences", "1", "--json", folder / "eval.json"}), 0)
      << io::read_file(folder / "output");
  const auto json = nlohmann::json::parse(io::read_file(folder / "eval.json"));
  // The context of the Lighthouse stage: longer than that of the last stage.
  EXPECT_NE(json.at("held_out_dense"), json.at("held_out_as_trained"));
  EXPECT_LT(json.at("held_out_dense"), 5);
  EXPECT_GT(json.at("token_frequency"), 2);
  EXPECT_GE(json.at("by_position_dense").size(), 2u);
  EXPECT_EQ(json.at("by_position_as_trained").size(), json.at("by_position_dense").size());
  ASSERT_EQ(json.at("leak_dense").size(), 5u);
  ASSERT_EQ(json.at("leak_as_trained").size(), 5u);
  for (const auto& bin : json.at("leak_dense")) EXPECT_EQ(bin.at("mean"), 0);
  EXPECT_NE(json.at("leak_as_trained")[0].at("mean"), 0);
  EXPECT_EQ(json.at("leak_as_trained")[1].at("first"), 2);
  EXPECT_EQ(json.at("leak_as_trained")[1].at("last"), 4);

  EXPECT_EQ(eval({"--checkpoint", folder / "text"}), 2);
  write_text(folder / "text", 2);
  EXPECT_EQ(eval({}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("fingerprint"), std::string::npos);
}

TEST_F(ProcessTest, PlansAndTimesARunWithoutItsText) {
  fs::remove(folder / "text");
  const auto said_by = [&](std::vector<std::string> words) {
    words.insert(words.end(), {folder / "recipe.toml", "--threads", "2"});
    const int status = Program(words, folder / "output").wait();
    std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, 0) << said;
    return said;
  };
  const std::string plan = said_by({"plan"});
  EXPECT_NE(plan.find("All stages: "), std::string::npos) << plan;
  EXPECT_NE(plan.find("yes"), std::string::npos) << plan;
  const std::string timed = said_by({"bench", "train", "--steps", "1"});
  EXPECT_NE(timed.find("ktok/s"), std::string::npos) << timed;
}

/// Losses of a small run, to the bit: with the instructions of libraries fixed they are the same on
/// every x86-64 processor. LIGHTHOUSE_GOLDEN=write writes them anew.
TEST_F(ProcessTest, LossesAreThoseOfTheGoldenRun) {
  const fs::path golden = fs::path(LIGHTHOUSE_GOLDEN);
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

TEST_F(ProcessTest, PasskeyMakesATableAndAHeatMap) {
  finish("run", false);
  const auto passkey = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{"passkey", folder / "run", "--trials", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  ASSERT_EQ(passkey({"--contexts", "64,256", "--depths", "0,50,100", "--json", folder / "p.json",
                     "--svg", folder / "p.svg"}),
            0)
      << io::read_file(folder / "output");
  const auto json = nlohmann::json::parse(io::read_file(folder / "p.json"));
  ASSERT_EQ(json.at("cells").size(), 6u);
  int64_t found = 0;
  for (const auto& cell : json.at("cells")) found += cell.at("found").get<int64_t>();
  EXPECT_DOUBLE_EQ(json.at("share").get<double>(), static_cast<double>(found) / 12);
  EXPECT_NE(io::read_file(folder / "p.svg").find("depth, %"), std::string::npos);
  // What cannot be done is refused before the rest is.
  EXPECT_EQ(passkey({"--contexts", "64,20"}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("context is 20 tokens"), std::string::npos);
  EXPECT_EQ(io::read_file(folder / "output").find("context 64"), std::string::npos);
  const std::vector<std::pair<fs::path, std::string>> bad{
      {folder / "none/p.json", "which cannot be written: '" + (folder / "none").string()},
      {folder / "run", "a folder; it must be a file"},
      {"", "it must be a file"}};
  for (const auto& [file, why] : bad) {
    EXPECT_EQ(passkey({"--json", file}), 2);
    const std::string said = io::read_file(folder / "output");
    EXPECT_NE(said.find("--json: is '" + file.string()), std::string::npos) << said;
    EXPECT_NE(said.find(why), std::string::npos) << said;
    EXPECT_EQ(said.find("context"), std::string::npos) << said;
  }
}

TEST_F(ProcessTest, SweepsAGridAndGoesOnWhereItStopped) {
  const auto sweep = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{
        "sweep", folder / "recipe.toml",    "--threads", "2",
        "--out", folder / "grid",           "--set",     "stage.dense.steps=2",
        "--set", "stage.lighthouse.steps=3"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  const std::vector<std::string> axes{"--vary", "stage.lighthouse.budget=4,8", "--vary",
                                      "optimizer.lr=1e-3,1e30"};
  ASSERT_EQ(sweep(axes), 0) << said();
  const auto all = nlohmann::json::parse(io::read_file(folder / "grid/sweep.json"));
  ASSERT_EQ(all.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(all[i].at("stage.lighthouse.budget"), i < 2 ? "4" : "8");
    EXPECT_EQ(all[i].at("optimizer.lr"), i % 2 == 0 ? "1e-3" : "1e30");
    const RunFolder run(folder / "grid" / all[i].at("run").get<std::string>());
    const auto summary = nlohmann::json::parse(io::read_file(run.summary()));
    EXPECT_EQ(all[i].at("dense_loss"), summary.at("stages")[1].at("dense_loss_after"));
  }
  EXPECT_NE(said().find("held-out loss, dense"), std::string::npos);

  // What is there stays; what was cut off ends with the same bits.
  const fs::path kept = folder / "grid" / all[0].at("run").get<std::string>();
  const fs::path cut = folder / "grid" / all[2].at("run").get<std::string>();
  const auto written = fs::last_write_time(kept / "metrics.jsonl");
  fs::remove(cut / "summary.json");
  fs::remove_all(Checkpoints(cut / "checkpoints").list().back());
  ASSERT_EQ(sweep(axes), 0) << said();
  EXPECT_EQ(fs::last_write_time(kept / "metrics.jsonl"), written);
  EXPECT_NE(said().find("resumed after step 4"), std::string::npos) << said();
  const auto again = nlohmann::json::parse(io::read_file(folder / "grid/sweep.json"));
  EXPECT_EQ(again[2].at("dense_loss"), all[2].at("dense_loss"));

  // A run that fails does not keep the others from theirs.
  EXPECT_EQ(sweep({"--vary", "optimizer.max_skipped_steps=0,1", "--vary", "run.seed=3", "--set",
                   "optimizer.lr=1e30", "--set", "optimizer.warmup_steps=0", "--set",
                   "optimizer.weight_decay=0"}),
            1)
      << said();
  EXPECT_NE(said().find("FAILED: step "), std::string::npos) << said();
  EXPECT_NE(said().find("of 2 runs failed"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "run.seed=3,3"}), 2);
  EXPECT_NE(said().find("two runs of the grid have the folder 'run.seed=3'"), std::string::npos);
  auto elsewhere = axes;
  elsewhere.insert(elsewhere.end(), {"--set", "run.eval_sequences=2"});
  EXPECT_EQ(sweep(elsewhere), 2);

  EXPECT_EQ(sweep({"--vary", "optimizer.lr"}), 2);
  EXPECT_NE(said().find("--vary is 'optimizer.lr'; it must be KEY=A,B"), std::string::npos);
  EXPECT_EQ(sweep({"--vary", "run.out=a,b"}), 2);
  EXPECT_NE(said().find("the runs' folders are in --out"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "run.seed=1", "--vary", "run.seed=2"}), 2);
  EXPECT_NE(said().find("--vary has run.seed twice"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "stage.0.steps=1,2", "--vary", "stage.lighthouse.steps=3"}), 2);
  EXPECT_NE(said().find("the runs 'stage.0.steps=1_stage.lighthouse.steps=3' and 'stage.0.steps=2"),
            std::string::npos)
      << said();
  EXPECT_EQ(sweep({"--vary", "stage.lighthouse.dense_layers=[0,[1]"}), 2);
  EXPECT_NE(said().find("whose brackets do not match"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--dry-run", "--vary", "stage.lighthouse.dense_layers=[0],[0,1],[]"}), 0)
      << said();
  EXPECT_NE(said().find("2 of 3: stage.lighthouse.dense_layers=[0,1]\n"), std::string::npos)
      << said();
  EXPECT_EQ(sweep({"--vary", "optimizer.lr=1e-3,-1"}), 2);
  EXPECT_NE(said().find("optimizer.lr is -1"), std::string::npos) << said();
  auto other = axes;
  other.insert(other.end(), {"--set", "run.seed=9"});
  EXPECT_EQ(sweep(other), 2);
  EXPECT_NE(said().find("was of another recipe; take another --out"), std::string::npos) << said();
  fs::resize_file(kept / "summary.json", 20);
  EXPECT_EQ(sweep(axes), 2);
  EXPECT_NE(said().find((kept / "summary.json").string() + "' is not the summary of a run"),
            std::string::npos)
      << said();
}

/// The run that it comes in ends; the next does not begin.
TEST_F(ProcessTest, ASignalAfterTheLastStepOfARunEndsTheSweep) {
  Program sweep(
      {"sweep", folder / "recipe.toml", "--threads", "2", "--out", folder / "grid", "--vary",
       "run.seed=1,2", "--set", "run.eval_every_steps=0", "--set", "run.eval_sequences=20"},
      folder / "output");
  wait_for_lines(sweep, "grid/run.seed=1", 22 + 3);  // steps, and evaluations but the last
  sweep.kill(SIGINT);
  const int status = sweep.wait();  // -1: it came between the two runs
  EXPECT_TRUE(status == 128 + SIGINT || status == -1) << status;
  EXPECT_FALSE(fs::exists(RunFolder(folder / "grid/run.seed=2").summary()));
}

/// Runs that have ended and one that has not.
TEST_F(ProcessTest, PlotsAnyNumberOfRuns) {
  finish("first", false);
  finish("second", false);
  const fs::path cut = RunFolder(folder / "second").metrics();
  std::ofstream(cut, std::ios::app)
      << R"({"kind":"skip","step":23,"stage":"dense","why":"x"})" << '\n';
  fs::remove(RunFolder(folder / "second").summary());
  const auto run = [&](const std::vector<std::string>& all) {
    return Program(all, folder / "output").wait();
  };
  ASSERT_EQ(run({"plot", folder / "first", folder / "second", "--svg", folder / "runs.svg"}), 0)
      << io::read_file(folder / "output");
  const std::string picture = io::read_file(folder / "runs.svg");
  for (const char* part : {"first, held-out, dense", "second, held-out, dense", "million tokens",
                           "seconds of training", "memory, GiB", "stroke-dasharray", "</svg>"}) {
    EXPECT_NE(picture.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(picture.find("nan"), std::string::npos);
  EXPECT_EQ(run({"plot", folder / "none", "--svg", folder / "none.svg"}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("RUN is '" + (folder / "none").string()),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "none.svg"));

  // A folder's name says which run, and where it does not, its path.
  fs::create_directories(folder / "other");
  fs::copy(folder / "first", folder / "other/first", fs::copy_options::recursive);
  const std::string twin = folder / "other/first";
  ASSERT_EQ(run({"plot", (folder / "second/.").string(), folder / "first", twin, "--svg",
                 folder / "runs.svg"}),
            0);
  const std::string named = io::read_file(folder / "runs.svg");
  for (const std::string& name : {std::string("second"), (folder / "first").string(), twin}) {
    EXPECT_NE(named.find(">" + name + ", held-out"), std::string::npos) << name;
  }
}

TEST_F(ProcessTest, ComparesRunsThatHaveEnded) {
  finish("first", false);
  finish("second", false);
  const auto compare = [&] {
    return Program({"compare", folder / "first", folder / "second", "--svg", folder / "c.svg"},
                   folder / "output")
        .wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  ASSERT_EQ(compare(), 0) << said();
  EXPECT_NE(said().find("ends with a held-out loss that is the same to three digits"),
            std::string::npos)
      << said();
  EXPECT_TRUE(fs::exists(folder / "c.svg"));
  const fs::path summary = RunFolder(folder / "second").summary();
  fs::resize_file(summary, fs::file_size(summary) - 10);
  EXPECT_EQ(compare(), 2);
  EXPECT_NE(said().find(summary.string() + "' is not the summary of a run: "), std::string::npos)
      << said();
  fs::remove(summary);
  EXPECT_EQ(compare(), 2);
  EXPECT_NE(said().find("RUN is '" + (folder / "second").string() + "', which has no summary.json"),
            std::string::npos)
      << said();
}

}  // namespace
}  // namespace lighthouse::train
