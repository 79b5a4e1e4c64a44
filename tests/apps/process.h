#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/run_folder.h"
#include "tests/run/support.h"

namespace lighthouse::app {

namespace fs = std::filesystem;
using run::Checkpoints;
using run::dense_stage;
using run::kLighthouseStage;
using run::read_checkpoint;
using run::recipe_head;
using run::RunFolder;
using run::write_text;
using std::chrono::microseconds;
using testing::Folder;

/// The program as a process of its own; what it says goes to a file.
class Program {
 public:
  /// @param largest_file in bytes: beyond it writing fails, as on a full disk; 0: no limit
  /// @param program another one instead
  Program(const std::vector<std::string>& arguments, const fs::path& output,
          rlim_t largest_file = 0, const char* program = LIGHTHOUSE_PROGRAM) {
    std::vector<std::string> all{program};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    argv.reserve(all.size() + 1);
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      // What a shell lets its background jobs ignore stays ignored in the program.
      for (const int stop : {SIGINT, SIGHUP, SIGTERM}) ::signal(stop, SIG_DFL);
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

  pid_t id() const { return pid_; }
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

  /// What a shell's command prints, and its status; `lighthouse` in it is the program.
  struct Said {
    int status;
    std::string text;
  };
  static Said shell(const std::string& command) {
    FILE* pipe =
        ::popen(("lighthouse() { " LIGHTHOUSE_PROGRAM " \"$@\"; }; " + command).c_str(), "r");
    Said said{-1, ""};
    for (char part[4096]; const size_t count = std::fread(part, 1, sizeof part, pipe);) {
      said.text.append(part, count);
    }
    said.status = WEXITSTATUS(::pclose(pipe));
    return said;
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

}  // namespace lighthouse::app
