#include "lighthouse/data/reader.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/data/files.h"

namespace lighthouse::data {

/// The bytes of a file as it gives them.
class Reader::Stream {
 public:
  explicit Stream(const std::filesystem::path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail(std::strerror(errno));
  }
  virtual ~Stream() { ::close(fd_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// How many bytes were read; 0 at the end.
  virtual size_t read(char* to, size_t most) {
    while (true) {
      const ssize_t count = ::read(fd_, to, most);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno != EINTR) fail(std::strerror(errno));
    }
  }

 protected:
  int descriptor() const { return fd_; }
  const std::filesystem::path& path() const { return path_; }
  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error(message("cannot read '", path_.string(), "': ", why));
  }

 private:
  std::filesystem::path path_;
  int fd_;
};

namespace {

constexpr size_t kPiece = 1 << 20;

class GzipStream : public Reader::Stream {
 public:
  explicit GzipStream(const std::filesystem::path& path)
      : Stream(path), file_(gzdopen(::dup(descriptor()), "rb")) {
    if (file_ == nullptr) fail(std::strerror(errno));
  }
  ~GzipStream() override { gzclose(file_); }
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  size_t read(char* to, size_t most) override {
    const int count = gzread(file_, to, static_cast<unsigned>(most));
    int error = Z_OK;
    const char* what = gzerror(file_, &error);
    // What is cut short reads well up to there, and then says so.
    if (count < 0 || error == Z_BUF_ERROR)
      fail(error == Z_ERRNO ? std::strerror(errno) : why(what));
    if (count > 0 && gzdirect(file_) == 1) fail("not compressed with gzip, as its name says");
    return static_cast<size_t>(count);
  }

 private:
  /// zlib's messages begin with "<fd:3>: ".
  static std::string why(std::string what) {
    const size_t colon = what.starts_with('<') ? what.find(">: ") : std::string::npos;
    return colon == std::string::npos ? what : what.substr(colon + 3);
  }

  gzFile file_;
};

class ZstdStream : public Reader::Stream {
 public:
  explicit ZstdStream(const std::filesystem::path& path)
      : Stream(path), stream_(ZSTD_createDStream()), packed_(ZSTD_DStreamInSize(), '\0') {
    if (stream_ == nullptr) fail("out of memory");
  }
  ~ZstdStream() override { ZSTD_freeDStream(stream_); }
  ZstdStream(const ZstdStream&) = delete;
  ZstdStream& operator=(const ZstdStream&) = delete;

  size_t read(char* to, size_t most) override {
    ZSTD_outBuffer out{to, most, 0};
    while (out.pos < out.size) {
      if (in_.pos == in_.size) {
        in_ = {packed_.data(), Stream::read(packed_.data(), packed_.size()), 0};
      }
      const bool at_end = in_.size == 0;
      if (at_end && wanted_ == 0) break;
      const size_t before = out.pos;
      wanted_ = ZSTD_decompressStream(stream_, &out, &in_);
      if (ZSTD_isError(wanted_) != 0) fail(ZSTD_getErrorName(wanted_));
      if (at_end && out.pos == before && wanted_ != 0) fail("unexpected end of file");
    }
    return out.pos;
  }

 private:
  ZSTD_DStream* stream_;
  std::string packed_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  size_t wanted_ = 0;  ///< 0: between two frames
};

std::unique_ptr<Reader::Stream> open(const std::filesystem::path& path) {
  switch (packing_of(path)) {
    case Packing::kGzip:
      return std::make_unique<GzipStream>(path);
    case Packing::kZstd:
      return std::make_unique<ZstdStream>(path);
    case Packing::kNone:
      break;
  }
  return std::make_unique<Reader::Stream>(path);
}

}  // namespace

Reader::Reader(const std::filesystem::path& path)
    : stream_(open(path)), buffer_(std::make_unique_for_overwrite<char[]>(kPiece)) {}
Reader::~Reader() = default;

std::string_view Reader::next() { return {buffer_.get(), stream_->read(buffer_.get(), kPiece)}; }

bool Lines::next(std::string& line) {
  line.clear();
  while (true) {
    while (piece_.empty()) {
      piece_ = reader_.next();
      if (piece_.empty()) return !line.empty();
      if (first_ && piece_.starts_with(kByteOrderMark)) piece_.remove_prefix(kByteOrderMark.size());
      first_ = false;
    }
    const size_t end = piece_.find('\n');
    line.append(piece_.substr(0, end));
    piece_.remove_prefix(end == std::string_view::npos ? piece_.size() : end + 1);
    if (end != std::string_view::npos) return true;
  }
}

}  // namespace lighthouse::data
