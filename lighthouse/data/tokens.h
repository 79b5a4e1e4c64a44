#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lighthouse/data/mapping.h"
#include "lighthouse/data/progress.h"

namespace lighthouse::data {

/// Token ids, one after the other: bytes, or numbers of 2 or 4 bytes, most of them in files that
/// are mapped, so that only what is used of them is read. Cheap to copy; it keeps what it views.
class Tokens {
 public:
  Tokens() = default;
  /// A byte is a token.
  Tokens(std::vector<uint8_t> bytes);  // NOLINT(google-explicit-constructor): the same thing
  /// The same of a file that is mapped; `name` is for messages.
  Tokens(const Mapping& mapping, std::string name);

  /// Maps a token file (docs/data.md): our own, with its header, those of llm.c, or numbers of two
  /// bytes without a header, as nanoGPT writes them. Throws std::runtime_error naming the file
  /// where it cannot be read, its header is damaged or of an unknown kind, or its size is not what
  /// the header says.
  static Tokens map(const std::filesystem::path& path);

  /// The tokens of all parts, in their order.
  static Tokens join(const std::vector<Tokens>& parts);
  Tokens slice(uint64_t first, uint64_t count) const;

  uint64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  /// Whether a byte is a token.
  bool is_text() const;

  /// Writes `count` ids from `first` on. Throws std::runtime_error, naming the file, the position
  /// and the id, where an id is not below `vocabulary`.
  void copy(uint64_t first, uint64_t count, int64_t vocabulary, int64_t* out) const;

  /// The first `count` ids, or all.
  std::vector<int64_t> first(uint64_t count) const;

  /// Where that id is among `count` tokens from `first` on, of which files keep none in memory.
  std::vector<uint64_t> places_of(int64_t id, uint64_t first, uint64_t count) const;

  /// Throws std::runtime_error unless all ids are below `vocabulary`: of a file whose header says
  /// its vocabulary that is believed, and held against it; of others every id is looked at.
  void check_vocabulary(int64_t vocabulary, const OnProgress& progress = {}) const;

  /// Calls `visit` with the bytes of text, a std::string_view at a time, of which no more than one
  /// stays in memory.
  template <class Visit>
  void scan(const Visit& visit) const {
    for (const Part& part : parts_) {
      scan(part, [&](std::span<const uint8_t> bytes, uint64_t) {
        visit(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
      });
    }
  }

  /// A hash of what is there: of all text; of a large token file its size and samples of it.
  uint64_t fingerprint() const;

 private:
  struct Part {
    std::shared_ptr<const void> owner;
    std::string name;  ///< for messages
    const uint8_t* data;
    int width;           ///< bytes of an id
    uint64_t size;       ///< ids
    uint64_t offset;     ///< of its first id in the file
    int64_t vocabulary;  ///< as the file's header says; 0: it does not
    bool mapped;
    uint64_t first = 0;  ///< of its ids in all of these
  };

  void add(Part part);
  [[noreturn]] static void refuse(const Part& part, uint64_t index, int64_t vocabulary);
  /// Calls `visit` with the bytes of a part in pieces, of which no more than one is in memory.
  template <class Visit>
  static void scan(const Part& part, const Visit& visit) {
    constexpr uint64_t kScanned = uint64_t{1} << 23;
    const std::span<const uint8_t> all(part.data, part.size * static_cast<uint64_t>(part.width));
    for (uint64_t done = 0; done < all.size(); done += kScanned) {
      const auto piece = all.subspan(done, std::min(kScanned, all.size() - done));
      visit(piece, done);
      if (part.mapped) release(piece.data(), piece.size());
    }
  }

  std::vector<Part> parts_;
  uint64_t size_ = 0;
};

/// Writes our own kind of token file from ids below `vocabulary`, in two or four bytes each,
/// atomically.
void write_tokens(const std::filesystem::path& path, std::span<const int64_t> ids,
                  int64_t vocabulary);

}  // namespace lighthouse::data
