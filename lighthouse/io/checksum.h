#pragma once

#include <filesystem>
#include <string>

namespace lighthouse::io {

/// XXH64 of a file's bytes, in 16 hexadecimal digits, as the program xxhsum prints it. Throws
/// std::runtime_error naming the path.
std::string xxh64(const std::filesystem::path& path);

}  // namespace lighthouse::io
