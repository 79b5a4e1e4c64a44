#include "lighthouse/kernels/pieces.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/array.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

TEST(Pieces, AreCutAtTheShiftAndEveryLengthAfterIt) {
  for (int64_t tokens = 1; tokens <= 12; ++tokens)
    for (int64_t local = 1; local <= 14; ++local)
      for (int64_t shift = 0; shift < local; ++shift) {
        SCOPED_TRACE(::testing::Message() << tokens << ", " << local << ", " << shift);
        const Pieces pieces(tokens, local, shift);
        for (int64_t t = 0; t < tokens; ++t) {
          const Pieces::Piece piece = pieces.of(t);
          const int64_t begin = t < shift ? 0 : shift + (t - shift) / local * local;
          const int64_t end = std::min(t < shift ? shift : begin + local, tokens);
          EXPECT_EQ(piece.begin, begin);
          EXPECT_EQ(piece.length, end - begin);
          const Pieces::Range range = pieces.range(piece.segment);
          EXPECT_EQ(range.begin + piece.index * range.length, begin);
          EXPECT_LT(piece.index, range.count);
          EXPECT_EQ(range.length, end - begin);
        }
        int64_t covered = 0;
        for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast})
          covered += pieces.range(segment).count * pieces.range(segment).length;
        EXPECT_EQ(covered, tokens);
      }
}

TEST(Pieces, LogSumExpsOfASegmentAreContiguous) {
  constexpr int64_t kBatch = 2;
  constexpr int64_t kHeads = 3;
  for (const auto& [tokens, local, shift] :
       {std::tuple(20, 5, 0), std::tuple(20, 6, 2), std::tuple(20, 6, 4), std::tuple(20, 25, 7),
        std::tuple(20, 25, 22), std::tuple(20, 100, 0)}) {
    SCOPED_TRACE(::testing::Message() << tokens << ", " << local << ", " << shift);
    const Pieces pieces(tokens, local, shift);
    int64_t expected = 0;
    for (int64_t b = 0; b < kBatch; ++b)
      for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
        const auto [begin, count, length] = pieces.range(segment);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t h = 0; h < kHeads; ++h)
            for (int64_t j = 0; j < length; ++j)
              EXPECT_EQ(pieces.lse_index(kHeads, b, h, begin + i * length + j), expected++);
      }
    EXPECT_EQ(expected, kBatch * kHeads * tokens);
  }
}

TEST(Pieces, NameWhatIsWrong) {
  EXPECT_TRUE(
      throws<std::invalid_argument>([] { Pieces(0, 1, 0); }, {"tokens is 0", "at least 1"}));
  EXPECT_TRUE(throws<std::invalid_argument>([] { Pieces(8, 0, 0); }, {"local is 0", "at least 1"}));
  EXPECT_TRUE(
      throws<std::invalid_argument>([] { Pieces(8, 4, -1); }, {"local_shift is -1", "at least 0"}));
  EXPECT_TRUE(throws<std::invalid_argument>([] { Pieces(8, 4, 4); },
                                            {"local_shift is 4", "below local, which is 4"}));
}

}  // namespace
}  // namespace lighthouse::testing
