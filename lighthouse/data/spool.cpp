#include "lighthouse/data/spool.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

constexpr size_t kBuffer = 1 << 20;

[[noreturn]] void fail(const std::string& folder) {
  const int error = errno;
  throw std::runtime_error(message("cannot write the text to a temporary file in '", folder,
                                   "': ", std::strerror(error),
                                   "; the environment variable TMPDIR names another folder"));
}

}  // namespace

Spool::~Spool() {
  if (fd_ >= 0) ::close(fd_);
}

void Spool::append(std::string_view bytes) {
  buffer_.append(bytes);
  if (buffer_.size() >= kBuffer) flush();
}

void Spool::flush() {
  if (fd_ < 0) {
    // Not /tmp, which may be memory.
    const char* folder = std::getenv("TMPDIR");
    folder_ = folder != nullptr && *folder != '\0' ? folder : "/var/tmp";
    std::string path = folder_ + "/lighthouse-XXXXXX";
    fd_ = ::mkostemp(path.data(), O_CLOEXEC);
    if (fd_ < 0) fail(folder_);
    ::unlink(path.c_str());
  }
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t count = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (count < 0 && errno != EINTR) fail(folder_);
    if (count > 0) done += static_cast<size_t>(count);
  }
  written_ += buffer_.size();
  buffer_.clear();
}

void Spool::cut(uint64_t size) {
  if (size >= written_) {
    buffer_.resize(size - written_);
    return;
  }
  buffer_.clear();
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0 ||
      ::lseek(fd_, static_cast<off_t>(size), SEEK_SET) < 0) {
    fail(folder_);
  }
  written_ = size;
}

Mapping Spool::map() {
  if (size() == 0) return {};
  flush();
  buffer_.shrink_to_fit();
  return map_descriptor(fd_, folder_);
}

}  // namespace lighthouse::data
