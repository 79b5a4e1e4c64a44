#include "lighthouse/io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::io {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const char* what, const fs::path& path) {
  const int error = errno;
  throw std::runtime_error(
      message("cannot ", what, " '", path.string(), "': ", std::generic_category().message(error)));
}

}  // namespace

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) fail("open", path);
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  void write(std::string_view bytes, const fs::path& path) const { write(fd_, bytes, path); }
  static void write(int fd, std::string_view bytes, const fs::path& path) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd, bytes.data(), bytes.size());
      if (written < 0 && errno != EINTR) fail("write", path);
      if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
    }
  }
  void sync(const fs::path& path) const {
    if (::fsync(fd_) != 0) fail("sync", path);
  }
  void close(const fs::path& path) {
    if (::close(std::exchange(fd_, -1)) != 0) fail("close", path);
  }

 private:
  int fd_;
};

namespace {

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

/// @param permissions 0: those of a new file
void replace(const fs::path& path, std::span<const std::string_view> parts, mode_t permissions) {
  fs::path partial = path;
  partial += ".partial-" + std::to_string(::getpid());
  try {
    Descriptor file(partial, O_WRONLY | O_CREAT | O_TRUNC);
    if (permissions != 0 && ::fchmod(file.get(), permissions) != 0) fail("write", partial);
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

using Status = std::optional<struct stat>;

/// Of what is at the end of symbolic links; nothing if that does not exist.
Status status_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return {};
  return status;
}

bool is_same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/// Whether writing to the descriptor writes to that file.
bool writes_to(int fd, const struct stat& file) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && is_same_file(status, file) &&
         (::fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
}

/// Where a chain of symbolic links leads, whether or not there is a file.
fs::path end_of_links(fs::path path) {
  constexpr int kMostLinks = 40;  // as the kernel has it
  std::error_code ignored;        // of what is not there
  for (int links = 0; fs::is_symlink(path, ignored); ++links) {
    check_argument(links < kMostLinks, "'", path.string(), "' is a symbolic link to itself");
    path = path.parent_path() / fs::read_symlink(path);
  }
  return path;
}

}  // namespace

void write_atomically(const fs::path& path, std::span<const std::string_view> parts) {
  replace(path, parts, 0);
}

void write_atomically(const fs::path& path, std::string_view bytes) {
  write_atomically(path, std::span(&bytes, 1));
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail("replace", to);
  const fs::path folder = folder_of(to);
  Descriptor(folder, O_RDONLY | O_DIRECTORY).sync(folder);
}

Appender::Appender(const fs::path& path)
    : path_(path), file_(new Descriptor(path, O_WRONLY | O_CREAT | O_APPEND)) {}
Appender::~Appender() = default;
void Appender::append(std::string_view bytes) { file_->write(bytes, path_); }
void Appender::sync() { file_->sync(path_); }

OutputFile::OutputFile(fs::path path) : path_(std::move(path)) {
  const auto require = [&](bool condition, const auto&... why) {
    check_argument(condition, "'", path_.string(), "' ", why...);
  };
  require(!path_.empty(), "is not the name of a file");
  if (path_ == "-") descriptor_ = STDOUT_FILENO;
  const Status file = status_of(path_);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    if (descriptor_ < 0 && file && writes_to(fd, *file)) descriptor_ = fd;
  }
  if (descriptor_ >= 0) return;
  if (file) {
    require(!S_ISDIR(file->st_mode), "is a folder; it must be a file");
    // To root every file is writable.
    require((file->st_mode & 0222) != 0 && ::access(path_.c_str(), W_OK) == 0, "is read-only");
    if (!S_ISREG(file->st_mode)) return;
  }
  const fs::path target = end_of_links(path_);
  if (file) {
    const Status named = status_of(target);
    if (!named || !is_same_file(*named, *file)) return;  // /dev/fd/3 of a file that was removed
    permissions_ = file->st_mode & 07777;
  }
  const fs::path folder = folder_of(target);
  std::error_code ignored;  // a folder that cannot be looked at is not one to write to
  require(fs::is_directory(folder, ignored), "cannot be written: there is no folder '",
          folder.string(), "'");
  require(::access(folder.c_str(), W_OK) == 0, "cannot be written: the folder '", folder.string(),
          "' is read-only");
  target_ = target;
}

bool OutputFile::is_standard_output() const { return descriptor_ == STDOUT_FILENO; }

void OutputFile::write(std::string_view bytes) const {
  if (!target_.empty()) {
    replace(target_, std::span(&bytes, 1), permissions_);
  } else if (descriptor_ >= 0) {
    if (std::fflush(nullptr) != 0) fail("write", path_);  // what was printed before comes before
    Descriptor::write(descriptor_, bytes, path_);
  } else {
    Descriptor file(path_, O_WRONLY | O_TRUNC | O_NOCTTY);
    file.write(bytes, path_);
    file.close(path_);
  }
}

Lock::Lock(const fs::path& path, const std::string& what)
    : file_(new Descriptor(path, O_RDWR | O_CREAT)) {
  if (::flock(file_->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) fail("lock", path);
    const std::string holder = read_file(path);
    throw std::runtime_error(
        message(what, " is in use by ",
                holder.empty() ? "another process" : holder.substr(0, holder.find('\n'))));
  }
  std::array<char, HOST_NAME_MAX + 1> host{};
  ::gethostname(host.data(), host.size() - 1);
  if (::ftruncate(file_->get(), 0) != 0) fail("write", path);
  file_->write(message("process ", ::getpid(), " on ", host.data(), '\n'), path);
}
Lock::~Lock() = default;

fs::path normal_path(const fs::path& path) {
  return fs::absolute(path / "").lexically_normal().parent_path();
}

std::string read_file(const fs::path& path) {
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
