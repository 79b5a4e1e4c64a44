#include "lighthouse/core/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

#include "lighthouse/core/settings.h"
#include "tests/support/throws.h"

namespace lighthouse {
namespace {

using testing::throws;

auto validated(const std::function<void(Config&)>& change) {
  return [change] {
    Config config;
    change(config);
    config.validate();
  };
}

TEST(Config, DefaultsAreValid) { EXPECT_NO_THROW(Config().validate()); }

TEST(Config, EveryFieldOutOfItsRangeIsNamed) {
  using Error = std::invalid_argument;
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.levels = 0; }), {"levels is 0", "1"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.pooling_factor = 1; }),
                            {"pooling_factor is 1", "2"}));
  EXPECT_TRUE(
      throws<Error>(validated([](Config& c) { c.tile_budget = 0; }), {"tile_budget is 0", "1"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.budget = 0; }), {"budget is 0", "1"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.budget = 100; }),
                            {"budget is 100", "tile_budget", "128"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.dilation = 0; }), {"dilation is 0", "1"}));
  EXPECT_TRUE(
      throws<Error>(validated([](Config& c) { c.half_life = 0; }), {"half_life is 0", "1"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.local = -1; }), {"local is -1", "0"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.local_shift = -1; }),
                            {"local_shift is -1", "at least 0"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.local_shift = 1; }),
                            {"local_shift is 1", "local, which is 0", "no pieces"}));
  EXPECT_TRUE(throws<Error>(validated([](Config& c) { c.local = c.local_shift = 8; }),
                            {"local_shift is 8", "below local, which is 8"}));
  for (const double scale :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_TRUE(
        throws<Error>(validated([=](Config& c) { c.scale = scale; }), {"scale is", "finite"}));
  }
}

TEST(Config, EveryFieldIsInTheListOnce) {
  Config config;
  // Does not compile where there are other fields than these.
  const auto& [a, b, c, d, e, f, g, h, i, j, k] = config;
  const std::set<const void*> fields{&a, &b, &c, &d, &e, &f, &g, &h, &i, &j, &k};
  std::set<const void*> listed;
  std::set<std::string> names;
  for_each_setting(config, [&](const Setting& setting, const auto& value) {
    listed.insert(&value);
    EXPECT_TRUE(names.insert(setting.name).second) << setting.name;
  });
  EXPECT_EQ(listed, fields);
}

TEST(Config, PiecesOfEverySecondLayerBeginInTheMiddle) {
  Config config;
  config.local = 7;
  Config shifted = config;
  shifted.local_shift = 3;
  for (const int64_t layer : {0, 2}) EXPECT_EQ(shifted.of_layer(layer), config);
  for (const int64_t layer : {1, 3}) EXPECT_EQ(config.of_layer(layer), shifted);
  EXPECT_EQ(Config().of_layer(1), Config());
}

TEST(Config, IsDescribedWithEverySetting) {
  Config config;
  config.scorer = Scorer::kDilated;
  config.scale = 0.5;
  EXPECT_EQ(describe(config),
            "levels=3, pooling_factor=4, budget=1536, tile_budget=128, scorer=dilated, dilation=4, "
            "half_life=16, selection=published, scale=0.5, local=0, local_shift=0");
  EXPECT_NE(describe(Config()).find("scale=none"), std::string::npos);
}

TEST(Words, GoBothWays) {
  for (const Scorer scorer : {Scorer::kNorm, Scorer::kDilated, Scorer::kGla}) {
    EXPECT_EQ(parse_word<Scorer>(to_string(scorer), "scorer"), scorer);
  }
  for (const SelectionRule rule : {SelectionRule::kPublished, SelectionRule::kCausal}) {
    EXPECT_EQ(parse_word<SelectionRule>(to_string(rule), "selection"), rule);
  }
  EXPECT_EQ(all_words<Scorer>(), "norm, dilated, gla");
}

enum class Three { kOne, kTwo, kThree };

}  // namespace

template <>
inline constexpr std::array kWords<Three>{"one", "two", "three"};

namespace {

TEST(Words, OthersAreRefusedWithTheChoices) {
  EXPECT_TRUE(
      throws<std::invalid_argument>([] { parse_word<Scorer>("norms", "scorer"); },
                                    {"scorer is 'norms'; it must be 'norm', 'dilated' or 'gla'"}));
  EXPECT_TRUE(
      throws<std::invalid_argument>([] { parse_word<Three>("", "how many"); },
                                    {"how many is ''; it must be 'one', 'two' or 'three'"}));
}

}  // namespace
}  // namespace lighthouse
