#include "lighthouse/data/loader.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

/// Where documents begin by these ends among `count` tokens of the corpus, from `first` on, counted
/// from there: after each end, so from 1 up to `count`.
std::vector<uint64_t> begins_of(const Tokens& corpus, const DocumentEnds& ends, uint64_t first,
                                uint64_t count) {
  std::vector<uint64_t> begins;
  for (auto end = std::ranges::upper_bound(ends.places, first);
       end != ends.places.end() && *end <= first + count; ++end) {
    begins.push_back(*end - first);
  }
  if (ends.token < 0) return begins;
  for (const uint64_t place : corpus.places_of(ends.token, first, count)) {
    begins.push_back(place + 1 - first);
  }
  return begins;
}

/// Tokens that follow one another, of which batches are cut.
class Stream {
 public:
  explicit Stream(uint64_t count)
      : tokens_(at::empty({static_cast<int64_t>(count)}, at::kLong)), begins_(count + 1) {}

  uint64_t left() const { return begins_.size() - 1 - done_; }

  /// Adds `count` of the corpus' tokens, from `first` on.
  void add(const Tokens& corpus, const DocumentEnds& ends, int64_t vocabulary, uint64_t first,
           uint64_t count) {
    corpus.copy(first, count, vocabulary, tokens_.data_ptr<int64_t>() + done_);
    if (first != next_) begins_[done_] = true;
    next_ = first + count;
    for (const uint64_t begin : begins_of(corpus, ends, first, count)) {
      begins_[done_ + begin] = true;
    }
    done_ += count;
  }

  /// The batch of all tokens but the last, and the one that follows them.
  Batch cut(int64_t batch, const RowDocuments& documents) const {
    const int64_t count = tokens_.numel() - 1, context = count / batch;
    Batch all{tokens_.narrow(0, 0, count).view({batch, context}),
              tokens_.narrow(0, 1, count).clone().view({batch, context})};
    if (documents.positions == Positions::kDocument) all.positions = at::empty_like(all.tokens);
    if (documents.most > 0) {
      all.document_starts = at::full({batch, documents.most}, context, at::kInt);
    }
    for (int64_t row = 0; row < batch; ++row) tell_documents(row, documents, all);
    return all;
  }

 private:
  void tell_documents(int64_t row, const RowDocuments& documents, const Batch& all) const {
    if (!all.positions.defined() && !all.document_starts.defined()) return;
    const int64_t context = all.tokens.size(1);
    const auto begins = begins_.begin() + row * context;
    std::vector<int64_t> starts{0};
    for (int64_t i = 1; i < context; ++i) {
      if (begins[i]) starts.push_back(i);
    }
    if (all.positions.defined()) {
      int64_t* const positions = all.positions[row].data_ptr<int64_t>();
      for (size_t i = 0; i < starts.size(); ++i) {
        const int64_t end = i + 1 < starts.size() ? starts[i + 1] : context;
        std::iota(positions + starts[i], positions + end, int64_t{0});
      }
    }
    if (!all.document_starts.defined()) return;
    const auto found = static_cast<int64_t>(starts.size());
    check_argument(found <= documents.most, "documents_per_row is ", documents.most,
                   ", and a row of ", context, " tokens has ", found,
                   " documents; it must be that many or more");
    std::ranges::copy(starts, all.document_starts[row].data_ptr<int32_t>());
    int64_t* const targets = all.targets[row].data_ptr<int64_t>();
    for (int64_t i = 0; i < context; ++i) {
      if (begins[i + 1]) targets[i] = kNoTarget;
    }
  }

  at::Tensor tokens_;
  std::vector<bool> begins_;  ///< whether a document begins at each token, and after the last
  uint64_t done_ = 0;
  uint64_t next_ = 0;  ///< the token of the corpus after those that were added last
};

}  // namespace

Loader::Loader(Tokens tokens, DocumentEnds document_ends, uint64_t seed, int64_t vocabulary,
               uint64_t block)
    : tokens_(std::move(tokens)),
      document_ends_(std::move(document_ends)),
      seed_(seed),
      vocabulary_(vocabulary),
      block_(block > 0 ? block : tokens_.size()),
      pieces_{0} {
  check_argument(!tokens_.empty(), "there are 0 tokens to train on; at least 1 is needed");
  const uint64_t longest = block > 0 ? tokens_.size() : kPiece;
  const auto add_pieces = [&](uint64_t end) {
    while (pieces_.back() < end) pieces_.push_back(std::min(pieces_.back() + longest, end));
  };
  if (tokens_.is_text()) {
    for (const uint64_t end : document_ends_.places) add_pieces(end);
  }
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

Batch Loader::next(int64_t batch, int64_t context, const RowDocuments& documents) {
  check_argument(batch >= 1, "the batch is ", batch, "; it must be 1 or more");
  check_argument(context >= 1, "the context is ", context, "; it must be 1 or more");
  const uint64_t count = static_cast<uint64_t>(batch) * static_cast<uint64_t>(context);
  Stream stream(count + 1);
  while (stream.left() > 0) {
    const Piece rest = rest_of_piece(position_ + count + 1 - stream.left());
    const uint64_t taken = std::min(rest.end - rest.begin, stream.left());
    stream.add(tokens_, document_ends_, vocabulary_, rest.begin, taken);
  }
  const Batch next = stream.cut(batch, documents);
  position_ += count;
  return next;
}

int64_t Loader::most_documents(uint64_t position, int64_t batch, int64_t context) {
  const auto row = static_cast<uint64_t>(context), count = static_cast<uint64_t>(batch) * row;
  std::vector<uint64_t> begins;
  uint64_t next = tokens_.size();
  for (uint64_t done = 0; done < count;) {
    const Piece rest = rest_of_piece(position + done);
    const uint64_t taken = std::min(rest.end - rest.begin, count - done);
    if (rest.begin != next) begins.push_back(done);
    for (const uint64_t begin : begins_of(tokens_, document_ends_, rest.begin, taken)) {
      begins.push_back(done + begin);
    }
    next = rest.begin + taken;
    done += taken;
  }
  std::ranges::sort(begins);
  begins.erase(std::ranges::unique(begins).begin(), begins.end());
  std::vector<int64_t> documents(static_cast<size_t>(batch), 1);
  for (const uint64_t begin : begins) {
    if (begin < count && begin % row != 0) ++documents[begin / row];
  }
  return *std::ranges::max_element(documents);
}

std::vector<Batch> held_out_batches(const Tokens& tokens, int64_t sequences, int64_t context,
                                    int64_t vocabulary, const DocumentEnds& ends,
                                    const RowDocuments& documents) {
  check_argument(sequences >= 1, "the number of held-out sequences is ", sequences,
                 "; it must be 1 or more");
  check_argument(context >= 1, "the held-out context is ", context, "; it must be 1 or more");
  const int64_t last = static_cast<int64_t>(tokens.size()) - 1;
  check_argument(last >= context, "there are ", tokens.size(), " held-out tokens; a sequence of ",
                 context, " needs ", context, " + 1");
  const int64_t count = std::min(sequences, last / context);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    Stream stream(static_cast<uint64_t>(context) + 1);
    stream.add(tokens, ends, vocabulary, static_cast<uint64_t>(last * i / count), stream.left());
    batches.push_back(stream.cut(1, documents));
  }
  return batches;
}

}  // namespace lighthouse::data
