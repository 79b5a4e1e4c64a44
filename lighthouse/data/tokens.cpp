#include "lighthouse/data/tokens.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/data/hash.h"
#include "lighthouse/io/file.h"

namespace lighthouse::data {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little endian");

constexpr std::array<char, 8> kMagic{'L', 'H', 'T', 'O', 'K', 'E', 'N', 'S'};

/// What our own files begin with.
struct Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t width;  ///< bytes of an id
  uint64_t count;
  uint64_t vocabulary;
};
static_assert(sizeof(Header) == 32);

/// llm.c's: 256 numbers of 4 bytes, the first three of which say something.
constexpr uint64_t kLlmcBytes = 1024;
constexpr int32_t kLlmcGpt2 = 20240520;    ///< version 1: ids of 2 bytes
constexpr int32_t kLlmcLlama3 = 20240801;  ///< version 7: ids of 4 bytes

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
  throw std::runtime_error(message("the token file '", path.string(), "' ", why));
}

struct Layout {
  uint64_t begin;
  int width;
  uint64_t count;
};

Layout layout_of(const std::filesystem::path& path, const uint8_t* data, uint64_t bytes) {
  if (bytes >= kMagic.size() && std::memcmp(data, kMagic.data(), kMagic.size()) == 0) {
    if (bytes < sizeof(Header)) fail(path, message("has ", bytes, " bytes, fewer than a header"));
    Header header{};
    std::memcpy(&header, data, sizeof(header));
    if (header.version != 1 || (header.width != 2 && header.width != 4)) {
      fail(path, message("has version ", header.version, " and ids of ", header.width,
                         " bytes; it must have version 1 and ids of 2 or 4"));
    }
    return {sizeof(Header), static_cast<int>(header.width), header.count};
  }
  if (bytes >= kLlmcBytes) {
    std::array<int32_t, 3> header{};
    std::memcpy(header.data(), data, sizeof(header));
    const bool gpt2 = header[0] == kLlmcGpt2 && header[1] == 1;
    const bool llama3 = header[0] == kLlmcLlama3 && header[1] == 7;
    if (gpt2 || llama3) return {kLlmcBytes, gpt2 ? 2 : 4, static_cast<uint32_t>(header[2])};
  }
  if (bytes % 2 != 0) fail(path, message("has ", bytes, " bytes, no whole number of 2-byte ids"));
  return {0, 2, bytes / 2};
}

/// A file's bytes, for as long as the pointer lives, also where the file is removed meanwhile.
std::shared_ptr<const void> map_bytes(const std::filesystem::path& path, uint64_t& bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, message("cannot be read: ", std::strerror(errno)));
  struct stat status {};
  void* data = nullptr;
  const bool known = ::fstat(fd, &status) == 0;
  bytes = static_cast<uint64_t>(status.st_size);
  if (known && bytes > 0) data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (!known || data == MAP_FAILED) fail(path, message("cannot be read: ", std::strerror(error)));
  if (bytes == 0) fail(path, "is empty");
  return {data, [bytes](void* mapped) { ::munmap(mapped, bytes); }};
}

int64_t id_at(const uint8_t* data, int width, uint64_t index) {
  uint32_t id = 0;
  std::memcpy(&id, data + index * static_cast<uint64_t>(width), static_cast<size_t>(width));
  return id;
}

}  // namespace

Tokens::Tokens(std::vector<uint8_t> bytes) : size_(bytes.size()) {
  if (bytes.empty()) return;
  const auto owner = std::make_shared<const std::vector<uint8_t>>(std::move(bytes));
  parts_.push_back({owner, "text", owner->data(), 1, size_, 0});
}

Tokens Tokens::map(const std::filesystem::path& path) {
  uint64_t bytes = 0;
  const auto owner = map_bytes(path, bytes);
  const auto* data = static_cast<const uint8_t*>(owner.get());
  const Layout layout = layout_of(path, data, bytes);
  const auto width = static_cast<uint64_t>(layout.width);
  if (layout.count != (bytes - layout.begin) / width || (bytes - layout.begin) % width != 0) {
    fail(path, message("has ", bytes - layout.begin, " bytes of ids; its header says ",
                       layout.count, " ids of ", width));
  }
  if (layout.count == 0) fail(path, "holds no ids");
  Tokens tokens;
  tokens.size_ = layout.count;
  tokens.parts_.push_back(
      {owner, path.string(), data + layout.begin, layout.width, layout.count, 0});
  return tokens;
}

Tokens Tokens::join(const std::vector<Tokens>& parts) {
  Tokens all;
  for (const Tokens& tokens : parts) {
    all.parts_.insert(all.parts_.end(), tokens.parts_.begin(), tokens.parts_.end());
    all.size_ += tokens.size_;
  }
  return all;
}

Tokens Tokens::slice(uint64_t first, uint64_t count) const {
  Tokens result;
  result.size_ = count;
  for (const Part& part : parts_) {
    if (first >= part.size) {
      first -= part.size;
      continue;
    }
    Part taken = part;
    taken.data += first * static_cast<uint64_t>(part.width);
    taken.offset += first;
    taken.size = std::min(count, part.size - first);
    if (taken.size == 0) break;
    count -= taken.size;
    first = 0;
    result.parts_.push_back(std::move(taken));
  }
  check_argument(count == 0, "a slice ends ", count, " tokens past the end");
  return result;
}

bool Tokens::is_text() const {
  return std::ranges::all_of(parts_, [](const Part& part) { return part.width == 1; });
}

void Tokens::copy(uint64_t first, uint64_t count, int64_t vocabulary, int64_t* out) const {
  for (const Part& part : slice(first, count).parts_) {
    for (uint64_t i = 0; i < part.size; ++i) {
      const int64_t id = id_at(part.data, part.width, i);
      if (id >= vocabulary) {
        throw std::runtime_error(message("'", part.name, "' has the id ", id, " at position ",
                                         part.offset + i, "; the model's vocabulary has ",
                                         vocabulary));
      }
      *out++ = id;
    }
  }
}

std::vector<int64_t> Tokens::first(uint64_t count) const {
  std::vector<int64_t> ids(std::min(count, size_));
  copy(0, ids.size(), std::numeric_limits<int64_t>::max(), ids.data());
  return ids;
}

uint64_t Tokens::fingerprint() const {
  constexpr uint64_t kSamples = 4096, kBytes = 64;
  uint64_t state = hash(std::to_string(size_));
  for (const Part& part : parts_) {
    const std::span<const uint8_t> all(part.data, part.size * static_cast<uint64_t>(part.width));
    if (part.width == 1 || all.size() <= kSamples * kBytes) {
      state = hash(all, state);
      continue;
    }
    state = hash(std::to_string(all.size()), state);
    for (uint64_t i = 0; i < kSamples; ++i) {
      state = hash(all.subspan((all.size() - kBytes) * i / (kSamples - 1), kBytes), state);
    }
  }
  return state;
}

void write_tokens(const std::filesystem::path& path, std::span<const int64_t> ids,
                  int64_t vocabulary) {
  const uint32_t width = vocabulary <= (1 << 16) ? 2 : 4;
  const Header header{kMagic, 1, width, ids.size(), static_cast<uint64_t>(vocabulary)};
  std::string bytes(ids.size() * width, '\0');
  for (size_t i = 0; i < ids.size(); ++i) {
    check_argument(ids[i] >= 0 && ids[i] < vocabulary, "id ", i, " is ", ids[i],
                   "; it must be from 0 to ", vocabulary - 1);
    std::memcpy(bytes.data() + i * width, &ids[i], width);
  }
  const std::array<std::string_view, 2> parts{
      std::string_view(reinterpret_cast<const char*>(&header), sizeof(header)), bytes};
  io::write_atomically(path, parts);
}

}  // namespace lighthouse::data
