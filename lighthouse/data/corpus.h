#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lighthouse/data/tokens.h"

namespace lighthouse::data {

/// What a model is trained on, and what is held out: text as bytes, or token files.
///
/// The text of a file, or of all files below a folder, as bytes, is split by a fixed rule. Binary
/// files (with a NUL byte or not valid UTF-8) and empty ones are skipped and counted.
///
/// Of JSON lines (*.jsonl, *.jsonl.gz) each line is a document, the text of one of its fields; its
/// path is that of the file with the line's number.
///
/// A byte is a token; every document ends with byte 0, which text never contains. Documents stand
/// in the order of their paths relative to the folder. A document is held out whole, if a hash of
/// its relative path says so: adding or removing others does not move it. Where that leaves a part
/// empty, as it does for a single file, the whole text is split by position, its end held out.
///
/// A file whose name ends with .bin, or a folder with such files, is token files (tokens.h),
/// mapped, in the order of their names. Those whose name begins with "val" or contains "_val" are
/// held out where there are any; else the end of all of it is.
class Corpus {
 public:
  /// Symbolic links to files are read, those to folders below `path` are not followed.
  ///
  /// @param text_field of JSON lines
  /// @param held_out_share the probability that a document is held out, in (0, 1); of a text that
  ///        is split by position, the share of its bytes
  /// @throws std::invalid_argument where `path` does not exist or holds no text, or a share is out
  ///         of range
  /// @throws std::runtime_error naming the file or folder that cannot be read
  static Corpus read(const std::filesystem::path& path, double held_out_share = 0.05,
                     const std::string& text_field = "text");

  const Tokens& train() const { return train_; }
  const Tokens& held_out() const { return held_out_; }
  /// Files or lines of JSON lines.
  int64_t documents() const { return documents_; }  ///< or token files
  int64_t skipped_empty() const { return skipped_empty_; }
  int64_t skipped_binary() const { return skipped_binary_; }
  /// A hash of both parts: a run refuses to resume on other data.
  uint64_t fingerprint() const;
  /// What there is, a line.
  std::string describe() const;

 private:
  static Corpus of_token_files(const std::vector<std::filesystem::path>& files,
                               double held_out_share);

  Tokens train_, held_out_;
  int64_t documents_ = 0, skipped_empty_ = 0, skipped_binary_ = 0;
};

}  // namespace lighthouse::data
