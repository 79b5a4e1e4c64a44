#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "lighthouse/core/check.h"
#include "lighthouse/data/tokens.h"
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

/// llm.c's: 256 numbers of 4 bytes, the first three of which say something: a date that stands for
/// the kind, its version, and the number of ids.
constexpr uint64_t kLlmcBytes = 1024;
struct LlmcKind {
  int32_t date, version;
  int width;
};
constexpr std::array kLlmcKinds{LlmcKind{20240520, 1, 2}, LlmcKind{20240801, 7, 4}};

/// What files that are no token files begin with, though their names end with .bin.
constexpr std::array<std::pair<std::string_view, const char*>, 5> kOthers{{
    {"PK\x03\x04", "a zip archive, as PyTorch saves models"},
    {"\x93NUMPY", "an array of NumPy"},
    {"GGUF", "a model of llama.cpp"},
    {"\x28\xb5\x2f\xfd", "compressed with zstd"},
    {"\x7f"
     "ELF",
     "a program"},
}};

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
  throw std::runtime_error(message("the token file '", path.string(), "' ", why));
}

struct Layout {
  uint64_t begin;
  int width;
  uint64_t count;
  uint64_t vocabulary;  ///< 0: it does not say
};

bool is_date(int32_t number) {
  const int32_t year = number / 10000, month = number / 100 % 100, day = number % 100;
  return year >= 2023 && year <= 2039 && month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

Layout layout_of(const std::filesystem::path& path, const uint8_t* data, uint64_t bytes) {
  const std::string_view start(reinterpret_cast<const char*>(data),
                               static_cast<size_t>(std::min<uint64_t>(bytes, 8)));
  for (const auto& [magic, what] : kOthers) {
    if (start.starts_with(magic)) fail(path, message("is ", what, ", and holds no token ids"));
  }
  if (start == std::string_view(kMagic.data(), kMagic.size())) {
    if (bytes < sizeof(Header)) fail(path, message("has ", bytes, " bytes, fewer than a header"));
    Header header{};
    std::memcpy(&header, data, sizeof(header));
    if (header.version != 1 || (header.width != 2 && header.width != 4)) {
      fail(path, message("has version ", header.version, " and ids of ", header.width,
                         " bytes; it must have version 1 and ids of 2 or 4"));
    }
    return {sizeof(Header), static_cast<int>(header.width), header.count, header.vocabulary};
  }
  std::array<int32_t, 3> header{};
  if (bytes >= sizeof(header)) std::memcpy(header.data(), data, sizeof(header));
  if (is_date(header[0])) {
    for (const LlmcKind& kind : kLlmcKinds) {
      if (header[0] == kind.date && header[1] == kind.version && bytes >= kLlmcBytes) {
        return {kLlmcBytes, kind.width, static_cast<uint32_t>(header[2]), 0};
      }
    }
    fail(path, message("begins like one of llm.c, of the kind ", header[0], ", version ", header[1],
                       bytes < kLlmcBytes ? ", cut short" : "", "; kinds that can be read are ",
                       kLlmcKinds[0].date, ", version ", kLlmcKinds[0].version, ", and ",
                       kLlmcKinds[1].date, ", version ", kLlmcKinds[1].version));
  }
  if (bytes % 2 != 0) fail(path, message("has ", bytes, " bytes, no whole number of 2-byte ids"));
  return {0, 2, bytes / 2, 0};
}

}  // namespace

Tokens Tokens::map(const std::filesystem::path& path) {
  const Mapping mapping = map_file(path);
  if (mapping.size == 0) fail(path, "is empty");
  const Layout layout = layout_of(path, mapping.data.get(), mapping.size);
  const auto width = static_cast<uint64_t>(layout.width);
  const uint64_t bytes = mapping.size - layout.begin;
  if (layout.count != bytes / width || bytes % width != 0) {
    fail(path, message("has ", bytes, " bytes of ids; its header says ", layout.count, " ids of ",
                       width));
  }
  if (layout.count == 0) fail(path, "holds no ids");
  if (layout.vocabulary >> 32 != 0) {
    fail(path, message("has a vocabulary of ", layout.vocabulary, "; ids have 4 bytes at most"));
  }
  Tokens tokens;
  tokens.add({mapping.data, path.string(), mapping.data.get() + layout.begin, layout.width,
              layout.count, 0, static_cast<int64_t>(layout.vocabulary), true});
  return tokens;
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
