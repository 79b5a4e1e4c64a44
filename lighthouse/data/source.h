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

/// Whether a token attends to the documents before its own that share its row.
enum class Attention {
  kAcross,  ///< it does
  kWithin,  ///< it attends inside its document alone
};

/// From where the positions count that the rotary embedding goes by.
enum class Positions {
  kRow,       ///< from the start of the row
  kDocument,  ///< from the start of the document, or of the part of it that is in the row
};

}  // namespace lighthouse::data

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::data::Documents>{"files", "folders"};
template <>
inline constexpr std::array lighthouse::kWords<lighthouse::data::Attention>{"across", "within"};
template <>
inline constexpr std::array lighthouse::kWords<lighthouse::data::Positions>{"row", "document"};

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
  Attention attention = Attention::kAcross;
  Positions positions = Positions::kRow;
  int64_t end_token = -1;  ///< the id that ends each document of token files; -1: it is not known

  /// Whether rows are made by where documents end.
  bool needs_documents() const {
    return attention == Attention::kWithin || positions == Positions::kDocument;
  }
};

}  // namespace lighthouse::data
