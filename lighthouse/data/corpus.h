#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lighthouse::data {

/// The text of a file or of all files below a folder, as bytes, in the order of their paths, split
/// by a fixed rule into a training part and a held-out part. Binary files (with a NUL byte or not
/// valid UTF-8) and empty ones are skipped and counted.
///
/// A byte is a token; every document ends with byte 0, which text never contains.
class Corpus {
 public:
  /// Throws std::invalid_argument where `path` does not exist or holds no text.
  /// @param held_out_share of the documents' bytes, about; a single file is split by position
  static Corpus read(const std::filesystem::path& path, double held_out_share = 0.05);

  const std::vector<uint8_t>& train() const { return train_; }
  const std::vector<uint8_t>& held_out() const { return held_out_; }
  int64_t documents() const { return documents_; }
  int64_t skipped_empty() const { return skipped_empty_; }
  int64_t skipped_binary() const { return skipped_binary_; }
  /// A hash of both parts: a run refuses to resume on other data.
  uint64_t fingerprint() const;

  std::vector<uint8_t> train_, held_out_;
  int64_t documents_ = 0, skipped_empty_ = 0, skipped_binary_ = 0;
};

}  // namespace lighthouse::data
