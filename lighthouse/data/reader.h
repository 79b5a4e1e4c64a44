#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace lighthouse::data {

/// The bytes of a file, piece by piece; decompressed where the name ends with .gz or .zst. Throws
/// std::runtime_error naming the file where it cannot be read, is not compressed as its name says,
/// or is cut short.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// The next bytes, until the next call; none at the end.
  std::string_view next();

  class Stream;

 private:
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<char[]> buffer_;
};

/// The lines of a file, decompressed as Reader does it, without a byte order mark.
class Lines {
 public:
  explicit Lines(const std::filesystem::path& path) : reader_(path) {}

  /// Whether there was one; without its end.
  bool next(std::string& line);

 private:
  Reader reader_;
  std::string_view piece_;
  bool first_ = true;
};

inline constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

}  // namespace lighthouse::data
