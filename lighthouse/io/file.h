#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace lighthouse::io {

/// Replaces the file at `path` with `parts`, one after the other: whenever the process dies, or the
/// machine, the path holds the whole old file or the whole new one, and once this has returned the
/// new one. A file that was begun and not finished is called `path` + ".partial-" + process id.
/// One thread at a time may write a path. Throws std::runtime_error naming the path.
void write_atomically(const std::filesystem::path& path, std::span<const std::string_view> parts);
void write_atomically(const std::filesystem::path& path, std::string_view bytes);

/// The bytes of a file. Throws std::runtime_error naming the path.
std::string read_file(const std::filesystem::path& path);

}  // namespace lighthouse::io
