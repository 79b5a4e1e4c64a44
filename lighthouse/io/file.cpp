#include "lighthouse/io/file.h"

#include <fcntl.h>
#include <sys/file.h>
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
    rename_durably(partial, path);
  } catch (...) {
    ::unlink(partial.c_str());
    throw;
  }
}

void write_atomically(const std::filesystem::path& path, std::string_view bytes) {
  write_atomically(path, std::span(&bytes, 1));
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail("replace", to);
  const std::filesystem::path folder = to.has_parent_path() ? to.parent_path() : ".";
  Descriptor(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync(folder);
}

struct Appender::File {
  std::filesystem::path path;
  Descriptor descriptor{path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC};
};

Appender::Appender(const std::filesystem::path& path) : file_(new File{path}) {}
Appender::~Appender() = default;
void Appender::append(std::string_view bytes) { file_->descriptor.write(bytes, file_->path); }
void Appender::sync() { file_->descriptor.sync(file_->path); }

Lock::Lock(const std::filesystem::path& path)
    : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) fail("open", path);
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const int error = errno;
  ::close(fd_);
  errno = error;
  fail("lock", path);
}
Lock::~Lock() { ::close(fd_); }

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
