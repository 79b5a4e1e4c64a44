#include "lighthouse/io/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::io {
namespace {

[[noreturn]] void fail(const char* what, const std::filesystem::path& path) {
  const int error = errno;
  throw std::runtime_error(
      message("cannot ", what, " '", path.string(), "': ", std::generic_category().message(error)));
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags)
      : fd_(::open(path.c_str(), flags, 0666)) {
    if (fd_ < 0) fail("open", path);
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write(std::string_view bytes, const std::filesystem::path& path) const {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno != EINTR) fail("write", path);
      if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
    }
  }
  void sync(const std::filesystem::path& path) const {
    if (::fsync(fd_) != 0) fail("sync", path);
  }
  void close(const std::filesystem::path& path) {
    if (::close(std::exchange(fd_, -1)) != 0) fail("close", path);
  }

 private:
  int fd_;
};

}  // namespace

void write_atomically(const std::filesystem::path& path, std::span<const std::string_view> parts) {
  std::filesystem::path partial = path;
  partial += ".partial-" + std::to_string(::getpid());
  try {
    Descriptor file(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    for (const std::string_view part : parts) file.write(part, partial);
    // The bytes must be on the disk before the name is, or a power cut leaves a name without them.
    file.sync(partial);
    file.close(partial);
    if (::rename(partial.c_str(), path.c_str()) != 0) fail("replace", path);
  } catch (...) {
    ::unlink(partial.c_str());
    throw;
  }
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  Descriptor(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync(folder);
}

void write_atomically(const std::filesystem::path& path, std::string_view bytes) {
  write_atomically(path, std::span(&bytes, 1));
}

std::string read_file(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("open", path);
  std::string bytes;
  for (char piece[1 << 16]; file.read(piece, sizeof piece), file.gcount() > 0;) {
    bytes.append(piece, static_cast<size_t>(file.gcount()));
  }
  // A folder opens, and fails here.
  if (file.bad()) fail("read", path);
  return bytes;
}

}  // namespace lighthouse::io
