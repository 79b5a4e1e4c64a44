#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lighthouse::data {

/// A file that was read, or left out once it had been.
struct ListedFile {
  size_t entry;      ///< which of the paths of the data led to it, from 0
  std::string as;    ///< "text", "json-lines", "tokens", "tokens-held-out", or "left-out"
  uint64_t tokens;   ///< that were taken of it
  uint64_t hash;     ///< of them; of a large token file, of samples
  std::string name;  ///< File::name

  bool operator==(const ListedFile&) const = default;
};

/// All that was read, in its order: what the data of a run is from its start on. A line each,
/// columns separated by a space, the name last.
using FileList = std::vector<ListedFile>;

/// Empty where there is no such file. Throws std::runtime_error naming the line that is damaged.
FileList read_file_list(const std::filesystem::path& path);
void write_file_list(const std::filesystem::path& path, const FileList& list);

}  // namespace lighthouse::data
