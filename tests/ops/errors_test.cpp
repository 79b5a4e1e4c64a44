#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;

/// 64 tokens, 4 query heads, 2 key/value heads of dimension 8; settings that fit.
struct Arguments {
  Tensor q = at::randn({1, 4, 64, 8});
  Tensor k = at::randn({1, 2, 64, 8});
  Tensor v = at::randn({1, 2, 64, 8});
  Config config;
  std::optional<TokenScores> scores;

  Arguments() {
    config.levels = 3;
    config.pooling_factor = 2;
    config.budget = 4;
    config.tile_budget = 4;
  }
};

/// Both attention and select refuse the arguments with such a message.
template <class Error, class Change>
::testing::AssertionResult refused(const Change& change, std::initializer_list<std::string> parts) {
  Arguments a;
  change(a);
  const Given given = a.scores ? Given(*a.scores) : Given();
  const auto by_attention =
      throws<Error>([&] { attention(a.q, a.k, a.v, a.config, given); }, parts);
  if (!by_attention) return by_attention;
  return throws<Error>([&] { select(a.q, a.k, a.v, a.config, a.scores); }, parts);
}

TEST(Errors, ArgumentsThatFitAreTaken) {
  const Arguments a;
  EXPECT_NO_THROW(attention(a.q, a.k, a.v, a.config));
}

TEST(Errors, Shapes) {
  using Error = c10::ValueError;
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.q = at::randn({4, 64, 8});
      },
      {"q has the shape [4, 64, 8]", "(batch, heads, tokens, head_dim)"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = at::randn({2, 64, 8});
      },
      {"k has the shape [2, 64, 8]", "[1, 4, 64, 8]"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({1, 2, 63, 8});
      },
      {"k has the shape [1, 2, 63, 8]", "[1, 4, 64, 8]"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({1, 2, 64, 4});
      },
      {"k has the shape [1, 2, 64, 4]"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({2, 2, 64, 8});
      },
      {"k has the shape [2, 2, 64, 8]"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.v = at::randn({1, 4, 64, 8});
      },
      {"v has the shape [1, 4, 64, 8]", "k, [1, 2, 64, 8]"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({1, 3, 64, 8});
      },
      {"k has 3 heads", "4 heads", "multiple"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({1, 8, 64, 8});
      },
      {"k has 8 heads", "4 heads", "multiple"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) {
        a.k = a.v = at::randn({1, 0, 64, 8});
      },
      {"k has 0 heads"}));
  for (const int64_t dimension : {1, 2, 3}) {
    EXPECT_TRUE(refused<Error>([=](Arguments& a) { a.q = a.k = a.v = a.q.slice(dimension, 0, 0); },
                               {"q has the shape", "at least 1"}));
  }
}

TEST(Errors, TypesAndDevices) {
  EXPECT_TRUE(refused<c10::TypeError>([](Arguments& a) { a.q = a.k = a.v = a.q.to(at::kInt); },
                                      {"q is Int", "float32, float64, bfloat16 or float16"}));
  EXPECT_TRUE(refused<c10::TypeError>([](Arguments& a) { a.k = a.k.to(at::kDouble); },
                                      {"k is Double", "q, Float"}));
  EXPECT_TRUE(refused<c10::TypeError>([](Arguments& a) { a.v = a.v.to(at::kHalf); },
                                      {"v is Half", "q, Float"}));
  EXPECT_TRUE(refused<c10::ValueError>([](Arguments& a) { a.k = a.k.to(at::kMeta); },
                                       {"k is on meta", "q, cpu"}));
  EXPECT_TRUE(refused<c10::ValueError>([](Arguments& a) { a.v = a.v.to(at::kMeta); },
                                       {"v is on meta", "q, cpu"}));
}

TEST(Errors, Settings) {
  using Error = c10::ValueError;
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.levels = 0; }, {"levels is 0"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.levels = 32; }, {"levels is 32", "31"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.pooling_factor = 1; },
                             {"pooling_factor is 1", "2"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.budget = 6; },
                             {"budget is 6", "tile_budget", "4"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.budget = 0; }, {"budget is 0"}));
  EXPECT_TRUE(
      refused<Error>([](Arguments& a) { a.config.tile_budget = -4; }, {"tile_budget is -4"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.dilation = 0; }, {"dilation is 0"}));
  EXPECT_TRUE(refused<Error>(
      [](Arguments& a) { a.config.scale = std::numeric_limits<double>::quiet_NaN(); },
      {"scale is", "finite"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.budget = 68; },
                             {"17 tiles", "64 tokens", "16 roots"}));
  EXPECT_TRUE(refused<Error>([](Arguments& a) { a.config.pooling_factor = int64_t{1} << 40; },
                             {"pooling_factor is 1099511627776"}));
}

TEST(Errors, CallersScores) {
  const auto with = [](const Tensor& q, const Tensor& k) {
    return [=](Arguments& a) { a.scores = TokenScores{q, k}; };
  };
  const Tensor q = at::zeros({1, 4, 64});
  const Tensor k = at::zeros({1, 2, 64});
  EXPECT_TRUE(
      refused<c10::ValueError>(with(k, k), {"scores.q has the shape [1, 2, 64]", "[1, 4, 64]"}));
  EXPECT_TRUE(
      refused<c10::ValueError>(with(q, q), {"scores.k has the shape [1, 4, 64]", "[1, 2, 64]"}));
  EXPECT_TRUE(
      refused<c10::ValueError>(with(q.slice(2, 1, 64), k), {"scores.q has the shape [1, 4, 63]"}));
  EXPECT_TRUE(refused<c10::TypeError>(with(q.to(at::kDouble), k), {"scores.q is Double", "Float"}));
  EXPECT_TRUE(refused<c10::ValueError>(with(q, k.to(at::kMeta)), {"scores.k is on meta", "cpu"}));
}

TEST(Errors, GivenSelections) {
  const Arguments a;
  const Selection fits = select(a.q, a.k, a.v, a.config);
  const auto given = [&](const Tensor& rows, const Tensor& slots) {
    return [&, rows, slots] { attention(a.q, a.k, a.v, a.config, Selection{rows, slots}); };
  };
  EXPECT_NO_THROW(given(fits.rows, fits.slots)());
  EXPECT_TRUE(
      throws<c10::ValueError>(given(fits.rows.slice(2, 1), fits.slots), {"rows has the shape"}));
  EXPECT_TRUE(throws<c10::ValueError>(given(fits.rows, fits.rows), {"slots has the shape"}));
  EXPECT_TRUE(
      throws<c10::TypeError>(given(fits.rows.to(at::kLong), fits.slots), {"rows is Long", "Int"}));
  EXPECT_TRUE(throws<c10::TypeError>(given(fits.rows, fits.slots.to(at::kFloat)),
                                     {"slots is Float", "Int"}));
  EXPECT_TRUE(
      throws<c10::ValueError>(given(fits.rows.to(at::kMeta), fits.slots), {"rows is on meta"}));
  EXPECT_TRUE(throws<c10::ValueError>(given(fits.rows.add(1 << 20), fits.slots),
                                      {"rows holds values from", "lighthouse::select"}));
  EXPECT_TRUE(
      throws<c10::ValueError>(given(fits.rows, fits.slots.sub(1)), {"slots holds values from -2"}));
  EXPECT_TRUE(throws<c10::ValueError>(given(fits.rows, fits.slots.add(1 << 20)),
                                      {"slots holds values from"}));
}

TEST(Errors, Operators) {
  const Arguments a;
  const std::vector<int64_t> geometry = ops::geometry_list(64, a.config);
  const auto [scores_q, scores_k, roots_bound] = ops::score(a.q, a.k, a.v, geometry);
  const Tensor& scores = scores_q;
  const Tensor& roots = roots_bound;
  const Selection maps = select(a.q, a.k, a.v, a.config);
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] {
        ops::score(a.q, a.k, a.v, {64, 3, 2});
      },
      {"geometry is [64, 3, 2]"}));
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] {
        ops::score(a.q, a.k, a.v, {63, 3, 2, 4, 4});
      },
      {"q has 64 tokens", "63"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::select(scores, scores, "acausal", geometry); },
                                      {"'acausal'", "'published'"}));
  EXPECT_TRUE(
      throws<c10::ValueError>([&] { ops::select(scores, scores.slice(2, 1), "causal", geometry); },
                              {"scores_k has the shape"}));
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] { ops::gather(a.q, a.k, a.v, roots.slice(1, 1), maps.rows, maps.slots, geometry); },
      {"roots has the shape"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::scatter(a.q, maps.rows, maps.slots, geometry); },
                                      {"gathered_out has the shape [1, 4, 64, 8]"}));
  EXPECT_TRUE(
      throws<c10::ValueError>([&] { ops::scatter_backward(a.q.slice(2, 1), maps.rows, geometry); },
                              {"grad_out has the shape [1, 4, 63, 8]"}));
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] { ops::gather_backward(a.q, a.k, a.v, maps.slots, false, geometry); },
      {"grad_gathered_q has 64 rows"}));
  for (const int64_t dimension : {1, 3}) {
    EXPECT_TRUE(throws<c10::ValueError>(
        [&] { ops::scatter_backward(a.q.narrow(dimension, 0, 0), maps.rows, geometry); },
        {"grad_out has the shape", "a head and an element at least"}));
  }
  EXPECT_TRUE(
      throws<c10::TypeError>([&] { ops::scatter_backward(a.q.to(at::kInt), maps.rows, geometry); },
                             {"grad_out is Int", "float32, float64, bfloat16 or float16"}));
}

}  // namespace
}  // namespace lighthouse::testing
