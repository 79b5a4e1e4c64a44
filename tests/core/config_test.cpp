#include "lighthouse/core/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

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
  for (const double scale :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_TRUE(
        throws<Error>(validated([=](Config& c) { c.scale = scale; }), {"scale is", "finite"}));
  }
}

TEST(Config, NamesGoBothWays) {
  for (const Scorer scorer : {Scorer::kNorm, Scorer::kDilated}) {
    EXPECT_EQ(parse_scorer(to_string(scorer)), scorer);
  }
  for (const SelectionRule rule : {SelectionRule::kPublished, SelectionRule::kCausal}) {
    EXPECT_EQ(parse_selection_rule(to_string(rule)), rule);
  }
  EXPECT_TRUE(throws<std::invalid_argument>([] { parse_scorer("norms"); },
                                            {"'norms'", "'norm'", "'dilated'"}));
  EXPECT_TRUE(throws<std::invalid_argument>([] { parse_selection_rule(""); },
                                            {"''", "'published'", "'causal'"}));
}

}  // namespace
}  // namespace lighthouse
