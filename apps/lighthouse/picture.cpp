#include "apps/lighthouse/picture.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <system_error>

#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 3> kFormats{"png", "svg", "pdf"};

std::string format_of(const std::string& file) {
  const std::string suffix = fs::path(file).extension();
  return suffix.empty() ? "svg" : CLI::detail::to_lower(suffix.substr(1));
}

std::string interpreter() {
  const char* named = std::getenv("LIGHTHOUSE_PYTHON");
  if (named != nullptr && *named != '\0') return named;
  std::error_code ignored;
  return fs::exists(LIGHTHOUSE_BUILD_PYTHON, ignored) ? LIGHTHOUSE_BUILD_PYTHON : "python3";
}

/// A file that is only in memory, and ends with this.
class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(::memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "cannot create a file");
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int fd() const { return fd_; }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

/// Runs a program to its end. Throws CLI::RuntimeError where it fails, having said why, and
/// std::runtime_error where it cannot be started or is killed.
void run(std::vector<std::string> words, const MemoryFile& input, const MemoryFile& output) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input.fd(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output.fd(), STDOUT_FILENO);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw std::runtime_error(message("cannot run '", words[0],
                                     "': ", std::generic_category().message(error),
                                     "; pictures need a Python that has matplotlib, which "
                                     "LIGHTHOUSE_PYTHON can name"));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (WIFSIGNALED(status)) {
    throw std::runtime_error(message("signal ", WTERMSIG(status), " ended '", words[0],
                                     "', which was to draw the picture"));
  }
  if (WEXITSTATUS(status) != 0) throw CLI::RuntimeError(kUnusable);
}

}  // namespace

CLI::Validator picture_file() {
  const auto check = [](std::string& name) -> std::string {
    const std::string format = format_of(name);
    if (std::ranges::find(kFormats, format) != kFormats.end()) return output_file()(name);
    return message("'", name, "' is a picture of format '", format,
                   "'; it must be png, svg or pdf");
  };
  return {check, "FILE"};
}

std::string draw(const std::string& file, const std::vector<std::string>& arguments,
                 const std::string& figures) {
  const std::string python = interpreter();
  const fs::path script =
      fs::read_symlink("/proc/self/exe").parent_path() / "../share/lighthouse/plot.py";
  std::vector<std::string> words{
      python, script.lexically_normal(), "--out", "-", "--format", format_of(file)};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const MemoryFile input("figures"), output("picture");
  std::ofstream(input.path()) << figures;
  std::cout.flush();  // Python's errors come after
  run(words, input, output);
  return io::read_file(output.path());
}

}  // namespace lighthouse::app
