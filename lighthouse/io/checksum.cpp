#include "lighthouse/io/checksum.h"

#define XXH_INLINE_ALL  // the header is the whole library
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "lighthouse/core/check.h"

namespace lighthouse::io {

std::string xxh64(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  const std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(),
                                                                         XXH64_freeState);
  XXH64_reset(state.get(), 0);
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    XXH64_update(state.get(), piece.data(), static_cast<size_t>(file.gcount()));
  }
  if (!file.eof()) {  // it does not exist, or is a folder
    throw std::runtime_error(
        message("cannot read '", path.string(), "': ", std::generic_category().message(errno)));
  }
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx",
                static_cast<unsigned long long>(XXH64_digest(state.get())));
  return digits.data();
}

}  // namespace lighthouse::io
