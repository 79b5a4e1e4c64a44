#include <ATen/TensorOperators.h>

#include "lighthouse/core/geometry.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"

namespace lighthouse::testing {
namespace {

class Select : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Select,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

Array marked(Array scores) {
  for (double& value : scores.values)
    if (value == -kInfinity) value = -1;
  return scores;
}

/// The scores of the library's score stage.
oracle::Scores scores_of(const Tensors& x, const Case& c) {
  const auto [q, k, roots] = ops::score(x.q, x.k, x.v, ops::geometry_list(c.tokens, c.config));
  return {to_array(q), to_array(k)};
}

void expect_selection(const Selection& selection, const oracle::Maps& expected) {
  EXPECT_TRUE(equal(to_array(selection.rows), expected.rows));
  EXPECT_TRUE(equal(to_array(selection.slots), expected.slots));
}

TEST_P(Select, ByNormAgreesWithTheOracle) {
  Random random(50);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const oracle::Qkv arrays = to_arrays(x);
    const oracle::Scores scores = scores_of(x, c);
    const oracle::Scores expected = oracle::pool(oracle::norm_scores(arrays.q, arrays.k), c.config);
    const double tolerance =
        static_cast<double>(c.dim + 1) * accumulator(rounding(GetParam())).unit + kFloat32.unit;
    EXPECT_TRUE(close(marked(scores.q), marked(expected.q), tolerance));
    EXPECT_TRUE(close(marked(scores.k), marked(expected.k), tolerance));
    // A last bit can flip a selection, so from here on both sides have the same scores.
    expect_selection(select(x.q, x.k, x.v, c.config), oracle::select(scores, c.tokens, c.config));
  }
}

/// Some tokens are NaN or infinite, in all of q, k and v.
TEST_P(Select, TakesAnyInput) {
  Random random(51);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const bool all = draw(random, 0, 4) == 0;
    for (const at::Tensor* tensor : {&x.q, &x.k, &x.v})
      for (int64_t n = 0; n < c.tokens; ++n) {
        const int64_t kind = draw(random, 0, all ? 1 : 9);
        if (kind <= 1)
          tensor->select(2, n)
              .select(2, draw(random, 0, c.dim - 1))
              .fill_(kind == 0            ? kNan
                     : draw(random, 0, 1) ? kInfinity
                                          : -kInfinity);
      }
    const oracle::Qkv arrays = to_arrays(x);
    const oracle::Scores scores = scores_of(x, c);
    const oracle::Scores expected = oracle::pool(oracle::norm_scores(arrays.q, arrays.k), c.config);
    for (const auto& [ours, theirs] :
         {std::pair(&scores.q, &expected.q), std::pair(&scores.k, &expected.k)})
      for (size_t j = 0; j < theirs->values.size(); ++j) {
        ASSERT_FALSE(std::isnan(ours->values[j]));
        ASSERT_EQ(std::isinf(ours->values[j]), std::isinf(theirs->values[j]));
        if (std::isinf(theirs->values[j])) {
          ASSERT_EQ(ours->values[j], theirs->values[j]);
        }
      }
    expect_selection(select(x.q, x.k, x.v, c.config), oracle::select(scores, c.tokens, c.config));
    EXPECT_EQ(attention(x.q, x.k, x.v, c.config).sizes(), x.q.sizes());
  }
}

TEST(SelectScorers, DilatedAgreesWithTheOracle) {
  Random random(52);
  for (int i = 0; i < 60; ++i) {
    Case c = random_case(random);
    c.config.scorer = Scorer::kDilated;
    if (draw(random, 0, 1)) c.config.scale = 0.3;
    SCOPED_TRACE(::testing::PrintToString(c));
    // In float64, where the scores of both sides agree until they are stored in float32.
    const Tensors x = random_tensors(random, c, at::kDouble);
    const double scale = c.config.scale.value_or(1 / std::sqrt(static_cast<double>(c.dim)));
    oracle::Scores tokens = oracle::dilated_scores(to_arrays(x), c.config.dilation, scale);
    for (Array* scores : {&tokens.q, &tokens.k})
      for (double& value : scores->values) value = static_cast<float>(value);
    expect_selection(select(x.q, x.k, x.v, c.config),
                     oracle::select(oracle::pool(tokens, c.config), c.tokens, c.config));
  }
}

TEST(SelectScorers, TheCallersScoresComeFirst) {
  Random random(53);
  for (int i = 0; i < 100; ++i) {
    Case c = random_case(random);
    c.config.scorer = i % 2 ? Scorer::kDilated : Scorer::kNorm;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, at::kFloat);
    TokenScores scores{to_tensor(normals(random, {c.batch, c.heads, c.tokens}), at::kFloat),
                       to_tensor(normals(random, {c.batch, c.groups, c.tokens}), at::kFloat)};
    scores.q.masked_fill_(scores.q.gt(1.5), kNan);
    if (i % 3 == 0) scores.k = scores.k.transpose(1, 2).contiguous().transpose(1, 2);
    const oracle::Scores expected =
        oracle::pool({to_array(scores.q), to_array(scores.k)}, c.config);
    expect_selection(select(x.q, x.k, x.v, c.config, scores),
                     oracle::select(expected, c.tokens, c.config));
  }
}

/// The tokens of a tile's last window of a level judge no entry of that tile at that level or
/// above: by the causal rule, whatever they are, the same entries are refined there.
TEST(SelectCausalRule, AWindowDoesNotDecideAboutItself) {
  Random random(54);
  int changed_under_the_published_rule = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random);
    if (c.config.levels == 1) continue;
    c.config.selection = SelectionRule::kCausal;
    const Geometry g(c.tokens, c.config);
    const int64_t tile = draw(random, 0, g.tiles - 1);
    const int64_t level = draw(random, 1, g.root_level());
    const int64_t end = g.tile_root(tile + 1) * g.root_window();
    const int64_t begin = end - g.window[level];
    if (begin >= c.tokens) continue;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, at::kFloat);
    Tensors moved{x.q.clone(), x.k.clone(), x.v.clone()};
    for (const at::Tensor* tensor : {&moved.q, &moved.k, &moved.v})
      tensor->slice(2, begin, end).mul_(static_cast<double>(draw(random, 0, 1) ? 100 : 0));

    const auto refined_in_tile = [&](const Tensors& inputs) {
      const at::Tensor flags = select(inputs.q, inputs.k, inputs.v, c.config).slots.bitwise_and(1);
      std::vector<Array> levels;
      for (int64_t l = level; l < g.levels; ++l) {
        const int64_t width = g.window[g.root_level() - l];
        levels.push_back(to_array(flags.slice(2, g.coarse(l, g.tile_root(tile) * width),
                                              g.coarse(l, g.tile_root(tile + 1) * width))));
      }
      return levels;
    };
    const auto unchanged = [&] {
      const auto before = refined_in_tile(x);
      const auto after = refined_in_tile(moved);
      for (size_t l = 0; l < before.size(); ++l)
        if (!equal(after[l], before[l])) return false;
      return true;
    };
    EXPECT_TRUE(unchanged());
    c.config.selection = SelectionRule::kPublished;
    changed_under_the_published_rule += !unchanged();
  }
  EXPECT_GT(changed_under_the_published_rule, 10) << "the test must be able to see a change";
}

/// One entry's score decides about the next entry alone: where that is no candidate, about nothing.
TEST(SelectCausalRule, AnEntryDecidesAboutTheNext) {
  Random random(55);
  int tried = 0;
  for (int i = 0; i < 300; ++i) {
    Case c = random_case(random);
    c.config.selection = SelectionRule::kCausal;
    c.batch = c.groups = c.heads = 1;
    const Geometry g(c.tokens, c.config);
    if (g.levels == 1) continue;
    const std::vector<int64_t> geometry = ops::geometry_list(c.tokens, c.config);
    const at::Tensor scores = to_tensor(normals(random, {1, 1, g.coarse_entries()}), at::kFloat);
    const at::Tensor slots = std::get<1>(ops::select(scores, scores, "causal", geometry));
    const int64_t level = draw(random, 1, g.root_level());
    const int64_t index = draw(random, 0, g.entries(level) - 1);
    const bool last = index + 1 == g.entries(level);
    if (!last && in_sequence(slots[0][0][g.coarse(level, index + 1)].item<Slot>())) continue;
    SCOPED_TRACE(::testing::PrintToString(c));
    const at::Tensor moved = scores.clone();
    moved[0][0][g.coarse(level, index)] = 1e9;
    EXPECT_TRUE(std::get<1>(ops::select(moved, moved, "causal", geometry)).equal(slots));
    ++tried;
  }
  EXPECT_GT(tried, 50);
}

}  // namespace
}  // namespace lighthouse::testing
