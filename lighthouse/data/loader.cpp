#include "lighthouse/data/loader.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <random>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

at::Tensor tokens_of(std::span<const uint8_t> bytes, int64_t batch) {
  at::Tensor tokens = at::empty({batch, static_cast<int64_t>(bytes.size()) / batch}, at::kLong);
  std::copy(bytes.begin(), bytes.end(), tokens.data_ptr<int64_t>());
  return tokens;
}

/// The batch of `bytes` tokens and the one that follows them.
Batch batch_of(std::span<const uint8_t> bytes, int64_t batch) {
  return {tokens_of(bytes.first(bytes.size() - 1), batch), tokens_of(bytes.subspan(1), batch)};
}

}  // namespace

Loader::Loader(const std::vector<uint8_t>& bytes, uint64_t seed) : bytes_(bytes), seed_(seed) {
  check_argument(!bytes.empty(), "there are 0 bytes of training text; at least 1 is needed");
  for (auto rest = bytes_; !rest.empty(); rest = rest.subspan(pieces_.back().size())) {
    const Piece longest = rest.first(std::min<size_t>(rest.size(), kPiece));
    const auto end = std::find(longest.begin(), longest.end(), 0);
    const size_t size = end == longest.end() ? longest.size() : end - longest.begin() + 1;
    pieces_.push_back(rest.first(size));
  }
  shuffle(0);
}

void Loader::shuffle(uint64_t epoch) {
  shuffled_epoch_ = epoch;
  order_ = pieces_;
  // The generator and the sequence that seeds it are defined to the bit by the standard;
  // std::shuffle and the distributions are not.
  const auto low = [](uint64_t bits) { return static_cast<uint32_t>(bits); };
  std::seed_seq seeds{low(seed_), low(seed_ >> 32), low(epoch), low(epoch >> 32)};
  std::mt19937_64 random(seeds);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);

  ends_.clear();
  uint64_t end = 0;
  for (const Piece& piece : order_) ends_.push_back(end += piece.size());
}

Loader::Piece Loader::rest_of_piece(uint64_t position) {
  const uint64_t epoch = position / bytes_.size();
  const uint64_t offset = position % bytes_.size();
  if (epoch != shuffled_epoch_) shuffle(epoch);
  const auto end = std::upper_bound(ends_.begin(), ends_.end(), offset);
  return order_[end - ends_.begin()].last(*end - offset);
}

Batch Loader::next(int64_t batch, int64_t context) {
  check_argument(batch >= 1, "the batch is ", batch, "; it must be 1 or more");
  check_argument(context >= 1, "the context is ", context, "; it must be 1 or more");
  const uint64_t count = static_cast<uint64_t>(batch) * static_cast<uint64_t>(context);
  std::vector<uint8_t> stream;
  stream.reserve(count + 1);
  while (stream.size() < count + 1) {
    const Piece rest = rest_of_piece(position_ + stream.size());
    const size_t taken = std::min<size_t>(rest.size(), count + 1 - stream.size());
    stream.insert(stream.end(), rest.begin(), rest.begin() + static_cast<ptrdiff_t>(taken));
  }
  position_ += count;
  return batch_of(stream, batch);
}

std::vector<Batch> held_out_batches(const std::vector<uint8_t>& bytes, int64_t sequences,
                                    int64_t context) {
  check_argument(sequences >= 1, "the number of held-out sequences is ", sequences,
                 "; it must be 1 or more");
  check_argument(context >= 1, "the held-out context is ", context, "; it must be 1 or more");
  const int64_t last = static_cast<int64_t>(bytes.size()) - 1;
  check_argument(last >= context, "the held-out text has ", bytes.size(), " bytes; a sequence of ",
                 context, " tokens needs ", context, " + 1");
  const int64_t count = std::min(sequences, last / context);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = last * i / count;
    batches.push_back(batch_of(std::span(bytes).subspan(begin, context + 1), 1));
  }
  return batches;
}

}  // namespace lighthouse::data
