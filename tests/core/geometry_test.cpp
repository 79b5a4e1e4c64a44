#include "lighthouse/core/geometry.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>
#include <stdexcept>

#include "tests/support/cases.h"
#include "tests/support/throws.h"

namespace lighthouse {
namespace {

using testing::Array;
using testing::Case;
using testing::Random;
using testing::random_case;
using testing::throws;
namespace oracle = testing::oracle;

TEST(Geometry, OfThePaper) {
  const Geometry g(98304, Config());
  EXPECT_EQ(g.roots, 6144);
  EXPECT_EQ(g.tiles, 12);
  EXPECT_EQ(g.rows, 18432);
  EXPECT_EQ(g.coarse_entries(), 98304 / 4 + 98304 / 16);
}

TEST(Geometry, AgreesWithTheOracle) {
  Random random(2);
  for (int i = 0; i < 300; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    EXPECT_EQ(g.rows, oracle::length(c.tokens, c.config));
    EXPECT_EQ(g.first[g.levels], oracle::entries(c.tokens, c.config));
    EXPECT_EQ(g.tile_row(g.tiles), g.rows);
    EXPECT_EQ(g.tile_root(g.tiles), g.roots);
    for (int64_t t = 0; t < g.tiles; ++t) {
      EXPECT_LT(g.tile_root(t), g.tile_root(t + 1));
      EXPECT_EQ(g.tile_row(t + 1) - g.tile_row(t), g.rows_of(g.tile_root(t + 1) - g.tile_root(t)));
    }
    for (int64_t l = 0; l < g.levels; ++l) {
      for (int64_t j = 0; j < g.entries(l); ++j) {
        EXPECT_EQ(g.level(g.id(l, j)), l);
        int64_t present = 0;
        for (int64_t t = j * g.window[l]; t < (j + 1) * g.window[l]; ++t) present += t < c.tokens;
        EXPECT_EQ(g.present(l, j), present);
      }
    }
  }
}

TEST(Geometry, APositionHearsTheWindowThatEndedLast) {
  Random random(4);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    for (int64_t l = 0; l < g.levels; ++l) {
      int64_t ended = -1;
      std::vector<int64_t> hearers(g.entries(l));
      for (int64_t j = 0; j < g.tokens; ++j) {
        while ((ended + 2) * g.window[l] <= j + 1) ++ended;
        EXPECT_EQ(g.heard(l, j), ended);
        if (ended < 0) continue;
        EXPECT_EQ(j, g.first_hearer(l, ended) + hearers[ended]);
        ++hearers[ended];
      }
      for (int64_t k = 0; k < g.entries(l); ++k) EXPECT_EQ(g.hearers(l, k), hearers[k]);
    }
  }
}

TEST(Geometry, SlotsGiveTheRowOfEveryEntry) {
  Random random(3);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    const Array scores = testing::normals(random, {1, 1, g.coarse_entries()});
    const oracle::Maps maps = oracle::select({scores, scores}, c.tokens, c.config);
    const std::vector<Slot> slots(maps.slots.values.begin(), maps.slots.values.end());
    std::vector<int64_t> expected(g.first[g.levels], -1);
    for (int64_t s = 0; s < g.rows; ++s) expected.at(maps.rows(0, 0, s)) = s;
    for (int64_t l = 0; l < g.levels; ++l) {
      for (int64_t j = 0; j < g.entries(l); ++j) {
        EXPECT_EQ(row_of(g, slots.data(), l, j), expected[g.id(l, j)]) << l << ", " << j;
      }
    }
  }
}

/// R = floor((N + M (P - 1)) / P): enough for every document to begin at a root.
TEST(Geometry, HasRootsForEveryDocument) {
  Random random(5);
  for (int i = 0; i < 200; ++i) {
    Case c = random_case(random);
    c.documents = testing::random_documents(random, 1, c.tokens);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config, c.documents.most);
    EXPECT_EQ(g.rows, oracle::length(c.tokens, c.config, c.documents));
    EXPECT_EQ(g.first[g.levels], oracle::entries(c.tokens, c.config, c.documents));
    std::vector<int64_t> borders = c.documents.starts[0];
    borders.push_back(c.tokens);
    int64_t roots = 0;
    for (size_t d = 0; d + 1 < borders.size(); ++d)
      roots += (borders[d + 1] - borders[d] + g.root_window() - 1) / g.root_window();
    EXPECT_LE(roots, g.roots);
  }
  EXPECT_THROW(Geometry(100, Config(), 0), std::invalid_argument);
}

TEST(Geometry, PacksSlots) {
  for (const int64_t row :
       {int64_t{0}, int64_t{7}, int64_t{std::numeric_limits<int32_t>::max() / 2}}) {
    for (const bool refined : {false, true}) {
      const Slot slot = make_slot(row, refined);
      EXPECT_TRUE(in_sequence(slot));
      EXPECT_EQ(slot_row(slot), row);
      EXPECT_EQ(is_refined(slot), refined);
    }
  }
  EXPECT_FALSE(in_sequence(kNoSlot));
  EXPECT_FALSE(is_refined(kNoSlot));
}

Config config_of(int64_t levels, int64_t pooling_factor, int64_t budget, int64_t tile_budget) {
  Config config;
  config.levels = levels;
  config.pooling_factor = pooling_factor;
  config.budget = budget;
  config.tile_budget = tile_budget;
  return config;
}

TEST(Geometry, NamesWhatDoesNotFit) {
  using Error = std::invalid_argument;
  const auto geometry = [](int64_t tokens, const Config& config) {
    return [=] { (void)Geometry(tokens, config); };
  };
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  EXPECT_TRUE(throws<Error>(geometry(0, Config()), {"tokens is 0", "1"}));
  EXPECT_TRUE(throws<Error>(geometry(-5, Config()), {"tokens is -5"}));
  EXPECT_TRUE(throws<Error>(geometry(kHuge, Config()), {std::to_string(kHuge)}));
  EXPECT_TRUE(throws<Error>(geometry(100, config_of(0, 2, 1, 1)), {"levels is 0"}));
  EXPECT_TRUE(throws<Error>(geometry(100, config_of(40, 2, 1, 1)), {"levels is 40"}));
  EXPECT_TRUE(throws<Error>(geometry(100, config_of(31, 3, 1, 1)), {"levels is 31", "is 3"}));
  EXPECT_TRUE(throws<Error>(geometry(100, config_of(2, kHuge, 1, 1)), {std::to_string(kHuge)}));
  EXPECT_TRUE(
      throws<Error>(geometry(33, config_of(3, 4, 4, 1)), {"4 tiles", "33 tokens", "3 roots"}));
  EXPECT_TRUE(throws<Error>(geometry(100, config_of(1, 2, kHuge, 1)), {"100 roots"}));
  EXPECT_TRUE(throws<Error>(geometry(std::numeric_limits<int32_t>::max(), config_of(2, 2, 1, 1)),
                            {"2147483647 tokens", "too many entries"}));
  EXPECT_TRUE(
      throws<Error>(geometry(1'200'000'000, config_of(1, 2, 1, 1)), {"rows", "1200000000"}));
  // At the bounds it does fit.
  EXPECT_NO_THROW(geometry(33, config_of(3, 4, 3, 1))());
  EXPECT_NO_THROW(geometry(100, config_of(2, 2, kHuge, kHuge))());
  EXPECT_NO_THROW(geometry(1'000'000'000, config_of(3, 4, 128, 128))());
}

TEST(Geometry, TilesFitExactlyWhereItCanBeMade) {
  Random random(4);
  int fitted = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random);
    c.config.budget = c.config.tile_budget * testing::draw(random, 1, 6);
    const int64_t documents = testing::draw(random, 0, 1) ? testing::draw(random, 1, 20) : 1;
    bool made = true;
    try {
      (void)Geometry(c.tokens, c.config, documents);
    } catch (const std::invalid_argument&) {
      made = false;
    }
    EXPECT_EQ(Geometry::tiles_fit(c.tokens, c.config, documents), made)
        << ::testing::PrintToString(c) << ", documents " << documents;
    fitted += made;
  }
  EXPECT_GT(fitted, 50);
  EXPECT_LT(fitted, 250);
}

TEST(DenseBecause, SaysWhyLighthouseDoesNotPay) {
  EXPECT_EQ(dense_because(98304, Config()), "");
  // 16 roots, then 4 children of each of m entries at two levels: 208, 252 and 256 rows.
  EXPECT_EQ(dense_because(256, config_of(3, 4, 32, 32)), "");
  EXPECT_EQ(dense_because(256, config_of(3, 4, 43, 43)), "");
  EXPECT_EQ(dense_because(256, config_of(3, 4, 44, 44)),
            "the gathered sequence would have 256 rows for 256 tokens");
  EXPECT_EQ(dense_because(256, config_of(3, 4, 16, 1)), "");
  EXPECT_EQ(dense_because(256, config_of(3, 4, 17, 1)),
            "a budget of 17 has more tiles (of 1) than 256 tokens have roots");
  EXPECT_TRUE(throws<std::invalid_argument>([] { (void)dense_because(256, config_of(3, 4, 4, 0)); },
                                            {"tile_budget is 0"}));
}

TEST(Geometry, Prints) {
  std::ostringstream out;
  out << Geometry(7, config_of(3, 2, 2, 1));
  EXPECT_NE(out.str().find("tokens 7"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("entries 8 + 4 + 2"), std::string::npos) << out.str();
}

}  // namespace
}  // namespace lighthouse
