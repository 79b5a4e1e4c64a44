#pragma once

#include <cstdint>
#include <vector>

namespace lighthouse::data {

/// Where the documents end that some tokens are of.
struct DocumentEnds {
  /// The token after the last of each, rising: of documents of text, or of token files, whose last
  /// document ends with them.
  std::vector<uint64_t> places = {};
  int64_t token = -1;  ///< the id that ends each document of token files; -1: it is not known
};

}  // namespace lighthouse::data
