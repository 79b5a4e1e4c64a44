#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lighthouse::data {

/// Token ids, one after the other: bytes in memory, or numbers of 2 or 4 bytes in files that are
/// mapped, so that only what is used of them is read. Cheap to copy; it keeps what it views.
class Tokens {
 public:
  Tokens() = default;
  /// A byte is a token.
  Tokens(std::vector<uint8_t> bytes);  // NOLINT(google-explicit-constructor): the same thing

  /// Maps a token file (docs/data.md): our own, with its header, those of llm.c, or numbers of two
  /// bytes without a header, as nanoGPT writes them. Throws std::runtime_error naming the file
  /// where it cannot be read, its header is damaged, or its size is not what the header says.
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

  /// A hash of what is there: of all of it in memory; of a file its size and samples of it.
  uint64_t fingerprint() const;

 private:
  struct Part {
    std::shared_ptr<const void> owner;
    std::string name;  ///< for messages
    const uint8_t* data;
    int width;        ///< bytes of an id
    uint64_t size;    ///< ids
    uint64_t offset;  ///< of its first id in the file
  };

  std::vector<Part> parts_;
  uint64_t size_ = 0;
};

/// Writes our own kind of token file from ids below `vocabulary`, in two or four bytes each,
/// atomically.
void write_tokens(const std::filesystem::path& path, std::span<const int64_t> ids,
                  int64_t vocabulary);

}  // namespace lighthouse::data
