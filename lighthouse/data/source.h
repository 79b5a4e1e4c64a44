#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lighthouse/core/words.h"

namespace lighthouse::data {

/// What of text is one document.
enum class Documents {
  kFiles,    ///< a file; a line of JSON lines
  kFolders,  ///< all files of a folder, in the order of their names, so that far text is related
};

}  // namespace lighthouse::data

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::data::Documents>{"files", "folders"};

namespace lighthouse::data {

/// What to train on (docs/data.md).
struct Source {
  /// Files, folders and patterns; relative to the working directory.
  std::vector<std::string> path;
  std::string text_field = "text";  ///< of JSON lines
  double held_out_share = 0.05;
  Documents documents = Documents::kFiles;
  int64_t folder_depth = 1;   ///< of such a folder: how many levels below the path it lies
  int64_t shuffle_block = 0;  ///< tokens of a block that the loader shuffles; 0: none
};

}  // namespace lighthouse::data
