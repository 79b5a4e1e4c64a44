#include "lighthouse/data/json_lines.h"

#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

constexpr size_t kMostOfAnError = 200;  ///< characters

/// The lines of a file, compressed or not.
class Lines {
 public:
  explicit Lines(const std::filesystem::path& path)
      : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (file_ == nullptr) fail(std::strerror(errno));
  }
  ~Lines() {
    if (file_ != nullptr) gzclose(file_);
  }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  /// Whether there was one; without its end.
  bool next(std::string& line) {
    line.clear();
    while (true) {
      const size_t end = buffer_.find('\n', begin_);
      line.append(buffer_, begin_, end == std::string::npos ? end : end - begin_);
      if (end != std::string::npos) {
        begin_ = end + 1;
        return true;
      }
      begin_ = 0;
      if (!fill()) return !line.empty();
    }
  }

 private:
  bool fill() {
    buffer_.resize(1 << 20);
    const int count = gzread(file_, buffer_.data(), static_cast<unsigned>(buffer_.size()));
    int error = Z_OK;
    const char* what = gzerror(file_, &error);
    // What is cut short reads well up to there, and then says so.
    if (count < 0 || error == Z_BUF_ERROR)
      fail(error == Z_ERRNO ? std::strerror(errno) : without_path(what));
    buffer_.resize(static_cast<size_t>(count));
    return count > 0;
  }
  /// zlib's messages begin with the path.
  std::string without_path(std::string what) const {
    const std::string prefix = path_.string() + ": ";
    return what.starts_with(prefix) ? what.substr(prefix.size()) : what;
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error(message("cannot read '", path_.string(), "': ", why));
  }

  std::filesystem::path path_;
  gzFile file_;
  std::string buffer_;
  size_t begin_ = 0;
};

}  // namespace

bool is_json_lines(const std::filesystem::path& path) {
  const std::string name = path.filename();
  return name.ends_with(".jsonl") || name.ends_with(".jsonl.gz");
}

void read_json_lines(const std::filesystem::path& path, const std::string& field,
                     const std::function<void(int64_t line, std::string text)>& visit) {
  Lines lines(path);
  std::string line;
  for (int64_t number = 1; lines.next(line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::string text;
    try {
      text = nlohmann::json::parse(line).at(field).get<std::string>();
    } catch (const nlohmann::json::exception& error) {
      // It quotes what it has read, which may be a whole document.
      throw std::runtime_error(message(
          "'", path.string(), "', line ", number, ", is not a JSON object with a string '", field,
          "' (data.text_field): ", std::string(error.what()).substr(0, kMostOfAnError)));
    }
    visit(number, std::move(text));
  }
}

}  // namespace lighthouse::data
