#include "lighthouse/data/loader.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

/// The batch of all tokens but the last, and the one that follows them.
Batch batch_of(const at::Tensor& stream, int64_t batch) {
  const int64_t count = stream.numel() - 1;
  return {stream.narrow(0, 0, count).view({batch, -1}),
          stream.narrow(0, 1, count).clone().view({batch, -1})};
}

at::Tensor empty_stream(uint64_t count) {
  return at::empty({static_cast<int64_t>(count)}, at::kLong);
}

}  // namespace

Loader::Loader(Tokens tokens, const std::vector<uint64_t>& document_ends, uint64_t seed,
               int64_t vocabulary, uint64_t block)
    : tokens_(std::move(tokens)),
      seed_(seed),
      vocabulary_(vocabulary),
      block_(block > 0 ? block : tokens_.size()),
      pieces_{0} {
  check_argument(!tokens_.empty(), "there are 0 tokens to train on; at least 1 is needed");
  const uint64_t longest = block > 0 ? tokens_.size() : kPiece;
  const auto add_pieces = [&](uint64_t end) {
    while (pieces_.back() < end) pieces_.push_back(std::min(pieces_.back() + longest, end));
  };
  for (const uint64_t end : document_ends) add_pieces(end);
  add_pieces(tokens_.size());
  shuffle(0);
}

void Loader::shuffle(uint64_t epoch) {
  shuffled_epoch_ = epoch;
  // The generator and the sequence that seeds it are defined to the bit by the standard;
  // std::shuffle and the distributions are not.
  const auto low = [](uint64_t bits) { return static_cast<uint32_t>(bits); };
  std::seed_seq seeds{low(seed_), low(seed_ >> 32), low(epoch), low(epoch >> 32)};
  std::mt19937_64 random(seeds);
  const auto shuffled = [&](size_t count) {
    std::vector<uint64_t> all(count);
    std::iota(all.begin(), all.end(), uint64_t{0});
    for (size_t i = count; i > 1; --i) std::swap(all[i - 1], all[random() % i]);
    return all;
  };
  order_ = shuffled(pieces_.size() - 1);
  blocks_ = shuffled(tokens_.size() / block_);

  ends_.clear();
  uint64_t end = 0;
  ends_.reserve(order_.size());
  for (const uint64_t piece : order_) ends_.push_back(end += pieces_[piece + 1] - pieces_[piece]);
}

Loader::Piece Loader::rest_of_piece(uint64_t position) {
  const uint64_t epoch = position / tokens_.size();
  uint64_t offset = position % tokens_.size();
  if (epoch != shuffled_epoch_) shuffle(epoch);
  const uint64_t block = offset / block_, inside = offset % block_;
  if (block < blocks_.size()) offset = blocks_[block] * block_ + inside;
  const auto end = std::upper_bound(ends_.begin(), ends_.end(), offset);
  const uint64_t last = pieces_[order_[static_cast<size_t>(end - ends_.begin())] + 1];
  const uint64_t begin = last - (*end - offset);
  return {begin, std::min(last, begin + (block_ - inside))};
}

Batch Loader::next(int64_t batch, int64_t context) {
  check_argument(batch >= 1, "the batch is ", batch, "; it must be 1 or more");
  check_argument(context >= 1, "the context is ", context, "; it must be 1 or more");
  const uint64_t count = static_cast<uint64_t>(batch) * static_cast<uint64_t>(context);
  const at::Tensor stream = empty_stream(count + 1);
  for (uint64_t done = 0; done < count + 1;) {
    const Piece rest = rest_of_piece(position_ + done);
    const uint64_t taken = std::min(rest.end - rest.begin, count + 1 - done);
    tokens_.copy(rest.begin, taken, vocabulary_, stream.data_ptr<int64_t>() + done);
    done += taken;
  }
  position_ += count;
  return batch_of(stream, batch);
}

std::vector<Batch> held_out_batches(const Tokens& tokens, int64_t sequences, int64_t context,
                                    int64_t vocabulary) {
  check_argument(sequences >= 1, "the number of held-out sequences is ", sequences,
                 "; it must be 1 or more");
  check_argument(context >= 1, "the held-out context is ", context, "; it must be 1 or more");
  const int64_t last = static_cast<int64_t>(tokens.size()) - 1;
  check_argument(last >= context, "there are ", tokens.size(), " held-out tokens; a sequence of ",
                 context, " needs ", context, " + 1");
  const int64_t count = std::min(sequences, last / context);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    const auto length = static_cast<uint64_t>(context) + 1;
    const at::Tensor stream = empty_stream(length);
    tokens.copy(static_cast<uint64_t>(last * i / count), length, vocabulary,
                stream.data_ptr<int64_t>());
    batches.push_back(batch_of(stream, 1));
  }
  return batches;
}

}  // namespace lighthouse::data
