#include "lighthouse/distributed/choose_exchange.h"

#include <gtest/gtest.h>

namespace lighthouse::distributed {
namespace {

Exchange auto_of(int64_t ranks, int64_t heads, int64_t groups, int64_t rows) {
  return choose_exchange(ExchangeChoice::kAuto, {ranks, heads, groups, rows}).exchange;
}

TEST(ChooseExchange, TakesHeadsWhereRanksDivideThem) {
  EXPECT_EQ(auto_of(4, 8, 2, 98304), Exchange::kHeads);
  EXPECT_EQ(auto_of(8, 8, 8, 1024), Exchange::kHeads);
}

/// From 2750 W G/H rows on.
TEST(ChooseExchange, TakesTheRingWhereAttentionHidesIt) {
  EXPECT_EQ(auto_of(3, 8, 8, 8250), Exchange::kRing);
  EXPECT_EQ(auto_of(3, 8, 8, 8249), Exchange::kGather);
  EXPECT_EQ(auto_of(3, 8, 2, 2062), Exchange::kRing);
  EXPECT_EQ(auto_of(3, 8, 2, 2061), Exchange::kGather);
}

/// They need no exchange but by heads.
TEST(ChooseExchange, TakesChunksForPiecesWhereTheyCanSelect) {
  const auto auto_of_pieces = [](int64_t rows, bool by_chunks) {
    return choose_exchange(ExchangeChoice::kAuto, {.ranks = 2,
                                                   .heads = 8,
                                                   .groups = 8,
                                                   .rows = rows,
                                                   .has_pieces = true,
                                                   .by_chunks = by_chunks});
  };
  EXPECT_EQ(auto_of_pieces(10240, true).exchange, Exchange::kRing);
  EXPECT_EQ(auto_of_pieces(5499, true).exchange, Exchange::kGather);
  EXPECT_EQ(auto_of_pieces(10240, false).exchange, Exchange::kHeads);
  EXPECT_EQ(auto_of_pieces(10240, true).because,
            "pieces then need no exchange, and attention to 10240 rows (5500 or more) hides the "
            "transfers of a ring");
}

TEST(ChooseExchange, SaysWhy) {
  const auto because = [](ExchangeChoice asked, int64_t ranks, int64_t rows) {
    return choose_exchange(asked, {ranks, 8, 8, rows}).because;
  };
  EXPECT_EQ(because(ExchangeChoice::kAuto, 2, 100),
            "2 ranks divide the 8 heads, and the result is that of one process");
  EXPECT_EQ(because(ExchangeChoice::kAuto, 3, 9000),
            "3 ranks do not divide the 8 heads, and attention to 9000 rows (8250 or more) hides "
            "the transfers of a ring");
  EXPECT_EQ(because(ExchangeChoice::kAuto, 3, 100),
            "3 ranks do not divide the 8 heads, and attention to 100 rows (less than 8250) does "
            "not hide the transfers of a ring");
}

TEST(ChooseExchange, TakesWhatIsAskedFor) {
  const ChosenExchange chosen = choose_exchange(ExchangeChoice::kRing, {2, 8, 8, 100});
  EXPECT_EQ(chosen.exchange, Exchange::kRing);
  EXPECT_EQ(chosen.because, "it was asked for");
}

TEST(ChooseExchange, TakesHeadsForDocuments) {
  EXPECT_EQ(choose_exchange(ExchangeChoice::kAuto, {.ranks = 2,
                                                    .heads = 8,
                                                    .groups = 8,
                                                    .rows = 100000,
                                                    .has_pieces = true,
                                                    .has_documents = true})
                .because,
            "it alone keeps documents apart");
}

}  // namespace
}  // namespace lighthouse::distributed
