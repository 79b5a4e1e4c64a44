#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace lighthouse::data {

/// Whether the name ends with .jsonl or .jsonl.gz.
bool is_json_lines(const std::filesystem::path& path);

/// Calls `visit` with the number of each line, from 1, and the text that its object has in a field.
/// Empty lines are passed over. A compressed file (gzip) is read as it is decompressed.
/// @throws std::runtime_error naming the file where it cannot be read or is cut short, and the line
///         that is not an object with a string in that field
void read_json_lines(const std::filesystem::path& path, const std::string& field,
                     const std::function<void(int64_t line, std::string text)>& visit);

}  // namespace lighthouse::data
