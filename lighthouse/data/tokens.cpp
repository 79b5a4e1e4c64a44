#include "lighthouse/data/tokens.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "lighthouse/core/check.h"
#include "lighthouse/data/hash.h"

namespace lighthouse::data {
namespace {

int64_t id_at(const uint8_t* data, int width, uint64_t index) {
  uint32_t id = 0;
  std::memcpy(&id, data + index * static_cast<uint64_t>(width), static_cast<size_t>(width));
  return id;
}

/// The largest of the ids. In blocks of a fixed size, which a compiler makes vectors of.
template <class Id>
Id largest(std::span<const uint8_t> bytes) {
  constexpr size_t kBlock = 64;
  Id all[kBlock]{};
  size_t begin = 0;
  for (; begin + sizeof(all) <= bytes.size(); begin += sizeof(all)) {
    Id block[kBlock];
    std::memcpy(block, bytes.data() + begin, sizeof(all));
    for (size_t i = 0; i < kBlock; ++i) all[i] = std::max(all[i], block[i]);
  }
  for (; begin < bytes.size(); begin += sizeof(Id)) {
    Id id = 0;
    std::memcpy(&id, bytes.data() + begin, sizeof(Id));
    all[0] = std::max(all[0], id);
  }
  return *std::ranges::max_element(all);
}

int64_t largest(std::span<const uint8_t> bytes, int width) {
  return width == 1   ? largest<uint8_t>(bytes)
         : width == 2 ? largest<uint16_t>(bytes)
                      : int64_t{largest<uint32_t>(bytes)};
}

/// Adds where the id is to `places`; the first of the bytes is at `first`. In blocks of a fixed
/// size, as above: few of them have it.
template <class Id>
void add_places(std::span<const uint8_t> bytes, int64_t id, uint64_t first,
                std::vector<uint64_t>& places) {
  if (id < 0 || id > int64_t{std::numeric_limits<Id>::max()}) return;
  constexpr size_t kBlock = 64;
  const auto wanted = static_cast<Id>(id);
  const size_t count = bytes.size() / sizeof(Id);
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    Id block[kBlock]{};
    std::memcpy(block, bytes.data() + begin * sizeof(Id), size * sizeof(Id));
    int found = 0;
    for (size_t i = 0; i < kBlock; ++i) found += block[i] == wanted;
    for (size_t i = 0; found > 0 && i < size; ++i) {
      if (block[i] == wanted) places.push_back(first + begin + i);
    }
  }
}

}  // namespace

Tokens::Tokens(std::vector<uint8_t> bytes) {
  const auto owner = std::make_shared<const std::vector<uint8_t>>(std::move(bytes));
  add({owner, "text", owner->data(), 1, owner->size(), 0, 0, false});
}

Tokens::Tokens(const Mapping& mapping, std::string name) {
  add({mapping.data, std::move(name), mapping.data.get(), 1, mapping.size, 0, 0, true});
}

void Tokens::add(Part part) {
  if (part.size == 0) return;
  part.first = size_;
  size_ += part.size;
  parts_.push_back(std::move(part));
}

Tokens Tokens::join(const std::vector<Tokens>& parts) {
  Tokens all;
  for (const Tokens& tokens : parts) {
    for (const Part& part : tokens.parts_) all.add(part);
  }
  return all;
}

Tokens Tokens::slice(uint64_t first, uint64_t count) const {
  check_argument(first <= size_ && count <= size_ - first, "a slice ends at ", first + count,
                 " of ", size_, " tokens");
  Tokens result;
  auto part = std::ranges::upper_bound(parts_, first, {}, &Part::first);
  for (part -= part == parts_.begin() ? 0 : 1; result.size_ < count; ++part) {
    const uint64_t skipped = first + result.size_ - part->first;
    Part taken = *part;
    taken.data += skipped * static_cast<uint64_t>(part->width);
    taken.offset += skipped;
    taken.size = std::min(count - result.size_, part->size - skipped);
    result.add(std::move(taken));
  }
  return result;
}

bool Tokens::is_text() const {
  return std::ranges::all_of(parts_, [](const Part& part) { return part.width == 1; });
}

void Tokens::refuse(const Part& part, uint64_t index, int64_t vocabulary) {
  throw std::runtime_error(message(
      "'", part.name, "' has the id ", id_at(part.data, part.width, index), " at position ",
      part.offset + index, "; the model's vocabulary has ", vocabulary, " (model.vocab_size)"));
}

void Tokens::copy(uint64_t first, uint64_t count, int64_t vocabulary, int64_t* out) const {
  for (const Part& part : slice(first, count).parts_) {
    for (uint64_t i = 0; i < part.size; ++i) {
      const int64_t id = id_at(part.data, part.width, i);
      if (id >= vocabulary) refuse(part, i, vocabulary);
      *out++ = id;
    }
  }
}

std::vector<int64_t> Tokens::first(uint64_t count) const {
  std::vector<int64_t> ids(std::min(count, size_));
  copy(0, ids.size(), std::numeric_limits<int64_t>::max(), ids.data());
  return ids;
}

std::vector<uint64_t> Tokens::places_of(int64_t id, uint64_t first, uint64_t count) const {
  std::vector<uint64_t> places;
  for (const Part& part : slice(first, count).parts_) {
    const std::span<const uint8_t> bytes(part.data, part.size * static_cast<uint64_t>(part.width));
    const auto add = part.width == 1   ? add_places<uint8_t>
                     : part.width == 2 ? add_places<uint16_t>
                                       : add_places<uint32_t>;
    add(bytes, id, first + part.first, places);
    if (part.mapped) release(bytes.data(), bytes.size());  // all of a file may be looked at
  }
  return places;
}

void Tokens::check_vocabulary(int64_t vocabulary, const OnProgress& progress) const {
  const auto is_to_scan = [&](const Part& part) {
    return part.vocabulary == 0 && vocabulary < int64_t{1} << (8 * part.width);
  };
  uint64_t all = 0;
  for (const Part& part : parts_) {
    if (part.vocabulary > vocabulary) {
      throw std::runtime_error(message("the token file '", part.name, "' has a vocabulary of ",
                                       part.vocabulary, "; the model's vocabulary has ", vocabulary,
                                       " (model.vocab_size)"));
    }
    if (is_to_scan(part)) all += part.size * static_cast<uint64_t>(part.width);
  }
  Ticker ticker("checking token ids", all, progress);
  for (const Part& part : parts_) {
    if (!is_to_scan(part)) continue;
    scan(part, [&](std::span<const uint8_t> bytes, uint64_t done) {
      if (largest(bytes, part.width) >= vocabulary) {
        uint64_t index = done / static_cast<uint64_t>(part.width);
        while (id_at(part.data, part.width, index) < vocabulary) ++index;
        refuse(part, index, vocabulary);
      }
      ticker.add(bytes.size());
    });
  }
}

uint64_t Tokens::fingerprint() const {
  constexpr uint64_t kSamples = 4096, kBytes = 64;
  uint64_t state = hash(std::to_string(size_));
  for (const Part& part : parts_) {
    const std::span<const uint8_t> all(part.data, part.size * static_cast<uint64_t>(part.width));
    if (part.width == 1 || all.size() <= kSamples * kBytes) {
      scan(part, [&](std::span<const uint8_t> bytes, uint64_t) { state = hash(bytes, state); });
      continue;
    }
    state = hash(std::to_string(all.size()), state);
    for (uint64_t i = 0; i < kSamples; ++i) {
      state = hash(all.subspan((all.size() - kBytes) * i / (kSamples - 1), kBytes), state);
    }
  }
  return state;
}

}  // namespace lighthouse::data
