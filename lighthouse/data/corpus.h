#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace lighthouse::data {

/// The text of a file, or of all files below a folder, as bytes, split by a fixed rule into a
/// training part and a held-out part. Binary files (with a NUL byte or not valid UTF-8) and empty
/// ones are skipped and counted.
///
/// A byte is a token; every document ends with byte 0, which text never contains. Documents stand
/// in the order of their paths relative to the folder. A document is held out whole, if a hash of
/// its relative path says so: adding or removing others does not move it. Where that leaves a part
/// empty, as it does for a single file, the whole text is split by position, its end held out.
class Corpus {
 public:
  /// Symbolic links to files are read, those to folders below `path` are not followed.
  ///
  /// @param held_out_share the probability that a document is held out, in (0, 1); of a text that
  ///        is split by position, the share of its bytes
  /// @throws std::invalid_argument where `path` does not exist or holds no text, or a share is out
  ///         of range
  /// @throws std::runtime_error naming the file or folder that cannot be read
  static Corpus read(const std::filesystem::path& path, double held_out_share = 0.05);

  const std::vector<uint8_t>& train() const { return train_; }
  const std::vector<uint8_t>& held_out() const { return held_out_; }
  int64_t documents() const { return documents_; }
  int64_t skipped_empty() const { return skipped_empty_; }
  int64_t skipped_binary() const { return skipped_binary_; }
  /// A hash of both parts: a run refuses to resume on other data.
  uint64_t fingerprint() const;

 private:
  std::vector<uint8_t> train_, held_out_;
  int64_t documents_ = 0, skipped_empty_ = 0, skipped_binary_ = 0;
};

}  // namespace lighthouse::data
