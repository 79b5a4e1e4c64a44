#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace lighthouse::data {

/// Calls `visit` with the number of each line, from 1, and the text that its object has in a field.
/// Blank lines are passed over.
/// @throws std::runtime_error naming the file where it cannot be read or is cut short, and the line
///         that is not an object with a string in that field
void read_json_lines(const std::filesystem::path& path, const std::string& field,
                     const std::function<void(int64_t line, const std::string& text)>& visit);

/// Whether a file *.json is JSON lines: its first line that is not blank is a whole object, which
/// has a string in that field, or after which more lines follow.
bool has_json_lines(const std::filesystem::path& path, const std::string& field);

}  // namespace lighthouse::data
