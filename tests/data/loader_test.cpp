#include "lighthouse/data/loader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "tests/support/throws.h"

namespace lighthouse::data {
namespace {

using Bytes = std::vector<uint8_t>;

/// Documents of 1, 2, 3, ... of the same letter, then a colon.
Bytes some_documents(int count) {
  Bytes bytes;
  for (int i = 1; i <= count; ++i) {
    bytes.insert(bytes.end(), i, static_cast<uint8_t>('A' + i % 60));
    bytes.push_back(':');
    bytes.push_back(0);
  }
  return bytes;
}

/// Each document ends with byte 0.
DocumentEnds ends_of(const Bytes& text) {
  DocumentEnds ends;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 0) ends.places.push_back(i + 1);
  }
  return ends;
}

Bytes bytes_of(const at::Tensor& tokens) {
  const at::Tensor bytes = tokens.to(at::kByte).contiguous();
  const auto* data = bytes.data_ptr<uint8_t>();
  return {data, data + bytes.numel()};
}

Bytes stream(Loader& loader, int64_t tokens) { return bytes_of(loader.next(1, tokens).tokens); }

Bytes sorted(Bytes bytes) {
  std::sort(bytes.begin(), bytes.end());
  return bytes;
}

TEST(Loader, HandsOutEveryByteOnceAnEpoch) {
  const Bytes text = some_documents(30);
  const auto size = static_cast<int64_t>(text.size());
  Loader loader(text, ends_of(text), 1);
  const Bytes first = stream(loader, size);
  EXPECT_EQ(loader.epoch(), 1u);
  const Bytes second = stream(loader, size);
  EXPECT_EQ(sorted(first), sorted(text));
  EXPECT_EQ(sorted(second), sorted(text));
  EXPECT_NE(first, text);
  EXPECT_NE(first, second);
}

TEST(Loader, KeepsDocumentsWhole) {
  const Bytes text = some_documents(30);
  Loader loader(text, ends_of(text), 1);
  const Bytes epoch = stream(loader, static_cast<int64_t>(text.size()));
  int documents = 0;
  for (auto begin = epoch.begin(); begin != epoch.end(); ++documents) {
    const auto end = std::find(begin, epoch.end(), 0) + 1;
    EXPECT_NE(std::search(text.begin(), text.end(), begin, end), text.end());
    EXPECT_EQ(std::count(begin, end, ':'), 1);
    begin = end;
  }
  EXPECT_EQ(documents, 30);
}

TEST(Loader, KeepsDocumentsOfManyFilesWhole) {
  const Bytes text = some_documents(30);
  std::vector<uint64_t> ends, all = ends_of(text).places;
  for (size_t i = 4; i < all.size(); i += 5) ends.push_back(all[i]);
  Loader loader(text, {ends}, 1);
  const Bytes epoch = stream(loader, static_cast<int64_t>(text.size()));
  EXPECT_NE(epoch, text);
  uint64_t begin = 0;
  for (const uint64_t end : ends) {
    const auto from = text.begin() + static_cast<ptrdiff_t>(begin);
    const auto to = text.begin() + static_cast<ptrdiff_t>(end);
    EXPECT_NE(std::search(epoch.begin(), epoch.end(), from, to), epoch.end());
    begin = end;
  }
}

TEST(Loader, ShufflesPiecesOfOneLongText) {
  Bytes text(3 * Loader::kPiece + 1000);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<uint8_t>(1 + i / Loader::kPiece);
  bool moved = false;
  Loader loader(text, ends_of(text), 1);
  for (int epoch = 0; epoch < 5; ++epoch) {
    const Bytes order = stream(loader, static_cast<int64_t>(text.size()));
    EXPECT_EQ(sorted(order), text);
    moved |= order != text;
  }
  EXPECT_TRUE(moved);
}

TEST(Loader, ShufflesBlocksOfALongDocument) {
  constexpr int kBlocks = 100, kBlock = 5;
  Bytes text;
  for (uint8_t i = 0; i < kBlocks; ++i) text.insert(text.end(), kBlock, i);
  text.insert(text.end(), {200, 201, 202});
  const auto size = static_cast<int64_t>(text.size());
  Loader loader(text, {{text.size()}}, 1, 256, kBlock);
  Bytes last;
  for (int epoch = 0; epoch < 2; ++epoch) {
    const Bytes order = stream(loader, size);
    EXPECT_EQ(Bytes(order.end() - 3, order.end()), Bytes(text.end() - 3, text.end()));
    EXPECT_EQ(sorted(order), text);
    EXPECT_NE(order, last);
    int in_order = 0;
    for (int i = 0; i < kBlocks; ++i) {
      const auto block = order.begin() + i * kBlock;
      EXPECT_EQ(Bytes(block, block + kBlock), Bytes(kBlock, *block));
      in_order += i > 0 && *block == *(block - 1) + 1;
    }
    EXPECT_LT(in_order, 10);  // about one is expected, by chance
    last = order;
  }
  loader.seek(static_cast<uint64_t>(size) + 123);
  EXPECT_EQ(stream(loader, 200), Bytes(last.begin() + 123, last.begin() + 323));
}

TEST(Loader, KeepsDocumentsWholeInsideABlock) {
  const Bytes text = some_documents(30);
  Loader loader(text, ends_of(text), 1, 256, text.size()), without(text, ends_of(text), 1);
  const auto size = static_cast<int64_t>(text.size());
  EXPECT_EQ(stream(loader, 2 * size), stream(without, 2 * size));
}

TEST(Loader, TargetsAreTheTokensThatFollow) {
  const Bytes text = some_documents(20);
  Loader loader(text, ends_of(text), 2), whole(text, ends_of(text), 2);
  const Bytes expected = stream(whole, 3 * 7 * 20 + 1);
  for (int64_t step = 0; step < 20; ++step) {
    const Batch batch = loader.next(3, 7);
    EXPECT_EQ(batch.tokens.scalar_type(), at::kLong);
    EXPECT_EQ(batch.tokens.sizes(), (std::vector<int64_t>{3, 7}));
    EXPECT_EQ(batch.targets.sizes(), batch.tokens.sizes());
    const auto begin = expected.begin() + step * 21;
    EXPECT_EQ(bytes_of(batch.tokens), Bytes(begin, begin + 21));
    EXPECT_EQ(bytes_of(batch.targets), Bytes(begin + 1, begin + 22));
  }
}

TEST(Loader, GoesOnWhereItIsWhateverTheContext) {
  const Bytes text = some_documents(20);
  Loader whole(text, ends_of(text), 3), loader(text, ends_of(text), 3);
  const Bytes expected = stream(whole, 1000);
  Bytes found;
  for (const auto& [batch, context] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 300}, {2, 50}, {1, 1}, {3, 133}, {1, 200}}) {
    const Bytes part = bytes_of(loader.next(batch, context).tokens);
    found.insert(found.end(), part.begin(), part.end());
    EXPECT_EQ(loader.position(), found.size());
  }
  EXPECT_EQ(found, expected);
}

TEST(Loader, SeeksToAnyPosition) {
  const Bytes text = some_documents(20);
  Loader whole(text, ends_of(text), 4);
  const Bytes expected = stream(whole, 2000);
  Loader loader(text, ends_of(text), 4);
  for (const uint64_t position : {1500u, 0u, 249u, 250u, 251u, 700u, 3u}) {
    loader.seek(position);
    const auto begin = expected.begin() + static_cast<ptrdiff_t>(position);
    EXPECT_EQ(stream(loader, 400), Bytes(begin, begin + 400)) << position;
  }
}

TEST(Loader, OrdersByTheSeed) {
  const Bytes text = some_documents(20);
  Loader one(text, ends_of(text), 5), same(text, ends_of(text), 5), other(text, ends_of(text), 6),
      high(text, ends_of(text), 5 + (uint64_t{1} << 40));
  const Bytes order = stream(one, 200);
  EXPECT_EQ(stream(same, 200), order);
  EXPECT_NE(stream(other, 200), order);
  EXPECT_NE(stream(high, 200), order);
}

TEST(Loader, RepeatsATextThatIsShorterThanABatch) {
  const Bytes text{'a', 'b', 0};
  Loader loader(text, ends_of(text), 7);
  EXPECT_EQ(stream(loader, 8), (Bytes{'a', 'b', 0, 'a', 'b', 0, 'a', 'b'}));
  EXPECT_EQ(stream(loader, 2), (Bytes{0, 'a'}));
}

using Numbers = std::vector<int64_t>;

Numbers numbers_of(const at::Tensor& row) {
  const at::Tensor numbers = row.to(at::kLong).contiguous();
  return {numbers.const_data_ptr<int64_t>(), numbers.const_data_ptr<int64_t>() + numbers.numel()};
}

/// Holds a batch of documents against where they begin among its tokens, the one after its last
/// included, besides at the start of each row.
void expect_documents(const Batch& batch, const std::vector<bool>& begins, int64_t most) {
  const int64_t rows = batch.tokens.size(0), context = batch.tokens.size(1);
  ASSERT_EQ(batch.document_starts.sizes(), (Numbers{rows, most}));
  ASSERT_EQ(batch.document_starts.scalar_type(), at::kInt);
  for (int64_t row = 0; row < rows; ++row) {
    Numbers starts, positions, has_target;
    for (int64_t i = 0; i < context; ++i) {
      if (i == 0 || begins[row * context + i]) starts.push_back(i);
      positions.push_back(i - starts.back());
      has_target.push_back(begins[row * context + i + 1] ? 0 : 1);
    }
    starts.resize(most, context);
    EXPECT_EQ(numbers_of(batch.document_starts[row]), starts);
    EXPECT_EQ(numbers_of(batch.positions[row]), positions);
    EXPECT_EQ(numbers_of(batch.targets[row].ne(kNoTarget)), has_target);
  }
}

constexpr int64_t kMost = 12;
constexpr RowDocuments kWithin{kMost, Positions::kDocument};

/// Its rows begin and end in the midst of documents, and one is longer than a row.
TEST(Loader, TellsWhereTheDocumentsOfARowBegin) {
  const Bytes text = some_documents(30);
  Loader loader(text, ends_of(text), 1), plain(text, ends_of(text), 1);
  int several = 0;
  for (int step = 0; step < 20; ++step) {  // more than an epoch
    const Batch batch = loader.next(3, 25, kWithin), expected = plain.next(3, 25);
    EXPECT_TRUE(batch.tokens.equal(expected.tokens));
    EXPECT_TRUE(batch.targets.eq(expected.targets)
                    .logical_or(batch.targets.eq(kNoTarget))
                    .all()
                    .item<bool>());
    EXPECT_FALSE(expected.document_starts.defined() || expected.positions.defined());
    EXPECT_EQ(expected.count_targets(), 75);
    std::vector<bool> begins{true};
    for (const int64_t token : numbers_of(batch.tokens.flatten())) begins.push_back(token == 0);
    expect_documents(batch, begins, kMost);
    several += batch.document_starts.slice(1, 2).lt(25).any().item<bool>();
  }
  EXPECT_GT(several, 5);
}

/// Text that goes on with another piece of a document, or the same one anew.
TEST(Loader, EndsADocumentWhereTheStreamDoesNotGoOn) {
  Bytes text(200);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<uint8_t>(i);
  Loader loader(text, {{text.size()}}, 1, 256, 5);
  int64_t documents = 0;
  for (int step = 0; step < 12; ++step) {
    const Numbers ahead = numbers_of(Loader(loader).next(1, 43).tokens[0]);
    const Batch batch = loader.next(2, 21, kWithin);
    std::vector<bool> begins{true};
    for (size_t i = 1; i < ahead.size(); ++i) begins.push_back(ahead[i] != ahead[i - 1] + 1);
    expect_documents(batch, begins, kMost);
    documents += batch.document_starts.lt(21).sum().item<int64_t>();
  }
  EXPECT_GT(documents, 48);
}

TEST(Loader, CountsPositionsFromADocumentsStartWhereAttentionCrossesToo) {
  const Bytes text = some_documents(20);
  Loader loader(text, ends_of(text), 1), within(text, ends_of(text), 1);
  const Batch batch = loader.next(2, 30, {0, Positions::kDocument});
  EXPECT_TRUE(batch.positions.equal(within.next(2, 30, kWithin).positions));
  EXPECT_GT(batch.positions.eq(0).sum().item<int64_t>(), 2);
  EXPECT_FALSE(batch.document_starts.defined());
  EXPECT_EQ(batch.count_targets(), 60);
  Loader rows(text, ends_of(text), 1);
  const Batch of_rows = rows.next(2, 30, {kMost, Positions::kRow});
  EXPECT_FALSE(of_rows.positions.defined());
  EXPECT_TRUE(of_rows.document_starts.defined());
}

TEST(Loader, SeeksToTheSameDocuments) {
  const Bytes text = some_documents(20);
  Loader loader(text, ends_of(text), 3);
  for (int step = 0; step < 9; ++step) loader.next(2, 30, kWithin);
  Loader other(text, ends_of(text), 3);
  other.seek(loader.position());
  const Batch a = loader.next(2, 30, kWithin), b = other.next(2, 30, kWithin);
  EXPECT_TRUE(a.document_starts.equal(b.document_starts));
  EXPECT_TRUE(a.targets.equal(b.targets));
}

/// Over epochs, in blocks too, by what ends documents and by the id that does.
TEST(Loader, FindsTheMostDocumentsOfARow) {
  const Bytes text = some_documents(30);
  for (const DocumentEnds& ends :
       {ends_of(text), DocumentEnds{{}, ':'}, DocumentEnds{ends_of(text).places, 'C'}}) {
    for (const uint64_t block : {0, 50}) {
      Loader loader(text, ends, 1, 256, block), counting(text, ends, 1, 256, block);
      std::vector<int64_t> found;
      for (int step = 0; step < 20; ++step) {
        const uint64_t position = loader.position();
        const Batch batch = loader.next(3, 25, kWithin);
        found.push_back(batch.document_starts.lt(25).sum(1).max().item<int64_t>());
        EXPECT_EQ(counting.most_documents(position, 3, 25), found.back());
      }
      EXPECT_EQ(counting.most_documents(0, 60, 25), std::ranges::max(found));
      EXPECT_LT(std::ranges::min(found), std::ranges::max(found));
    }
  }
}

TEST(Loader, RefusesARowOfTooManyDocuments) {
  const Bytes text{'a', 0, 'b', 0, 'c', 0, 'd', 0};
  Loader loader(text, ends_of(text), 1);
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [&] {
        loader.next(1, 8, {3, Positions::kRow});
      },
      {"documents_per_row is 3", "a row of 8 tokens has 4 documents", "that many or more"}));
  EXPECT_EQ(loader.position(), 0u);
  EXPECT_EQ(loader.next(1, 8, {4, Positions::kRow}).count_targets(), 4);
}

TEST(Loader, RefusesWhatIsEmpty) {
  const Bytes text{'a'}, none;
  EXPECT_THROW(Loader(none, {}, 1), std::invalid_argument);
  Loader loader(text, ends_of(text), 1);
  EXPECT_THROW(loader.next(0, 1), std::invalid_argument);
  EXPECT_THROW(loader.next(1, 0), std::invalid_argument);
}

TEST(HeldOutBatches, AreSpreadEvenlyWithoutOverlap) {
  Bytes text(101);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<uint8_t>(i);
  const auto batches = held_out_batches(text, 3, 10);
  ASSERT_EQ(batches.size(), 3u);
  const Bytes begins{0, 33, 66};
  for (size_t i = 0; i < 3; ++i) {
    const at::Tensor expected = at::arange(begins[i], begins[i] + 11, at::kLong).view({1, 11});
    EXPECT_TRUE(at::equal(batches[i].tokens, expected.slice(1, 0, 10)));
    EXPECT_TRUE(at::equal(batches[i].targets, expected.slice(1, 1)));
  }
}

TEST(HeldOutBatches, TellWhereDocumentsBegin) {
  const Bytes text = some_documents(10);
  for (const Batch& batch : held_out_batches(text, 3, 20, 256, ends_of(text), kWithin)) {
    std::vector<bool> begins{true};
    for (const int64_t token : numbers_of(batch.tokens.flatten())) begins.push_back(token == 0);
    expect_documents(batch, begins, kMost);
    EXPECT_LT(batch.count_targets(), 20);
  }
}

TEST(HeldOutBatches, AreAsManyAsTheTextHolds) {
  const Bytes text(101, 'x');
  EXPECT_EQ(held_out_batches(text, 50, 20).size(), 5u);
  EXPECT_EQ(held_out_batches(text, 1, 100).size(), 1u);
  EXPECT_THROW(held_out_batches(text, 1, 101), std::invalid_argument);
  EXPECT_THROW(held_out_batches(text, 0, 10), std::invalid_argument);
  EXPECT_THROW(held_out_batches({}, 1, 10), std::invalid_argument);
}

}  // namespace
}  // namespace lighthouse::data
