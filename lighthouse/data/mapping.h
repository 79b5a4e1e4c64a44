#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace lighthouse::data {

/// A file's bytes where they lie: only what is used of them is read. They stay for as long as
/// `data` lives, also where the file is removed meanwhile; null where there are none.
struct Mapping {
  std::shared_ptr<const uint8_t> data;
  uint64_t size = 0;
};

/// Throws std::runtime_error naming the file where it cannot be read.
Mapping map_file(const std::filesystem::path& path);

/// Of an open file; `name` is for messages.
Mapping map_descriptor(int fd, const std::string& name);

/// Gives the memory of mapped bytes back, the pages they lie on as a whole; who uses them again
/// finds them in the file.
void release(const uint8_t* data, uint64_t size);

}  // namespace lighthouse::data
