#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <streambuf>
#include <string>
#include <string_view>

#include "lighthouse/io/file.h"

namespace lighthouse::app {

/// The check of an option that names a file to write at the end: one that could not be written is
/// refused before the work.
CLI::Validator output_file();

/// The file of such an option. If it is standard output, everything else that the verb prints goes
/// to standard error while this exists, so that the file alone can be piped.
class Output {
 public:
  /// @param path empty: there is no file
  explicit Output(const std::string& path);
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  explicit operator bool() const { return file_.has_value(); }
  /// For the reader: its absolute path, or "standard output".
  std::string name() const;
  void write(std::string_view bytes) const { file_->write(bytes); }

 private:
  std::optional<io::OutputFile> file_;
  std::streambuf* standard_output_ = nullptr;  ///< buffer of std::cout while it is redirected
};

}  // namespace lighthouse::app
