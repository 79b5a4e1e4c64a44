#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "lighthouse/data/inventory.h"

namespace lighthouse::data {

/// What a file's name says that it is, whatever the case of its letters and before .gz and .zst.
enum class Kind {
  kText,       ///< every other name
  kJson,       ///< .json: JSON lines or text, as its first line says
  kJsonLines,  ///< .jsonl, .ndjson
  kTokens,     ///< .bin
  kParquet,    ///< .parquet
};
Kind kind_of(const std::filesystem::path& path);

enum class Packing { kNone, kGzip, kZstd };
Packing packing_of(const std::filesystem::path& path);

/// Whether a token file's name says that it is to be held out: whether its file name, or else the
/// innermost folder that says anything, has a word like val, valid, test or dev, and none like
/// train. Words are of letters alone.
bool is_held_out(const std::string& name);

/// A file to read.
struct File {
  std::filesystem::path path;
  /// Relative to the folder that the path of the data names, or that a pattern begins with. Of a
  /// path that is a file: its own name, or "." where there is no other path.
  std::string name;
  Kind kind;
  size_t entry;  ///< which of the paths led to it
};

/// The files that the paths lead to, in their order; those of a folder or a pattern in the order
/// of their names, folder by folder; each file once.
///
/// A pattern has *, ? or [...], which stand for letters of one name, or ** for any folders; a
/// folder that it matches is taken whole. Symbolic links are followed, but no folder is read twice.
/// The folder of a run or of a model, and what is neither file nor folder, is left out.
///
/// @throws std::invalid_argument where a path does not exist or is neither a file nor a folder, or
///         a pattern matches nothing
/// @throws std::runtime_error naming the file or folder that cannot be read
std::vector<File> find_files(const std::vector<std::string>& paths, Inventory& inventory);

/// The folder that a file is of, at most that many levels deep: of "a/b/c.txt" "a" at depth 1,
/// "a/b" from 2 on; "." of a file in none.
std::string folder_of(const std::string& name, int64_t depth);

/// Where the file of that name is, which the path of the data led to.
std::filesystem::path path_of(const std::string& data_path, const std::string& name);

}  // namespace lighthouse::data
