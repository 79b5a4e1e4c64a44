#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/stages.h"
#include "lighthouse/ops/tensor.h"
#include "tests/ops/meta.h"
#include "tests/ops/plain_pieces.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradients.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

/// Documents packed into rows.
namespace lighthouse::testing {
namespace {

using at::Tensor;

class Packed : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Packed,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

/// A small problem with documents, and pieces of any length and shift.
Case random_packed(Random& random) {
  Case c = random_case(random);
  c.config.local = draw(random, 1, draw(random, 0, 2) ? c.tokens + 3 : 8);
  c.config.local_shift = draw(random, 0, 1) ? draw(random, 0, c.config.local - 1) : 0;
  c.documents = random_documents(random, c.batch, c.tokens);
  return c;
}

Results run_packed(const Tensors& x, const Tensor& grad_out, const Config& config,
                   const Given& given, const Tensor& starts) {
  return run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return attention(q, k, v, config, given, starts);
  });
}
Results run_local(const Tensors& x, const Tensor& grad_out, const Config& config,
                  const Tensor& starts) {
  return run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return local_attention(q, k, v, config, starts);
  });
}
Results run_dense(const Tensors& x, const Tensor& grad_out, const Tensor& starts) {
  return run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return dense_attention(q, k, v, {}, starts);
  });
}

/// @param rows that are compared; all of the selection, or the first
void expect_the_oracles(const Case& c, const Tensors& x, const Tensor& grad_out,
                        const Results& ours, const Array& rows) {
  const oracle::Qkv arrays = to_arrays(x);
  const oracle::Cut cut{c.config.local, c.config.local_shift};
  expect_within_budget(
      ours, run_plainly(x, grad_out, &rows, c.config, c.documents), x, grad_out,
      oracle::attention(arrays, rows, c.config, cut, c.documents),
      oracle::attention_adjoint(arrays, to_array(grad_out), rows, c.config, cut, c.documents),
      c.config);
}

TEST_P(Packed, AttentionAgreesWithTheOracle) {
  Random random(200);
  for (int i = 0; i < 40; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Tensor starts = starts_of(c);
    const Selection selection = select(x.q, x.k, x.v, c.config, {}, starts);
    EXPECT_EQ(selection.rows.size(2), gathered_rows(c.tokens, c.config, c.documents.most));
    if (GetParam() == at::kDouble) {
      const oracle::Qkv arrays = to_arrays(x);
      EXPECT_TRUE(equal(to_array(selection.rows),
                        oracle::select(oracle::pool(oracle::norm_scores(arrays.q, arrays.k),
                                                    c.config, c.documents),
                                       c.tokens, c.config, c.documents)
                            .rows));
    }
    const Results ours = run_packed(x, grad_out, c.config, {}, starts);
    expect_same_bits(run_packed(x, grad_out, c.config, selection, starts), ours);
    expect_the_oracles(c, x, grad_out, ours, to_array(selection.rows));
  }
}

TEST_P(Packed, PiecesAndDenseAttentionAgreeWithTheOracle) {
  Random random(201);
  for (int i = 0; i < 40; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Tensor starts = starts_of(c);
    const oracle::Qkv arrays = to_arrays(x);
    const oracle::Attended grad{to_array(grad_out), Array({c.batch, c.heads, c.tokens})};
    const double scale = 1 / std::sqrt(static_cast<double>(c.dim));
    const auto expect = [&](const Results& ours, const Config& config) {
      const oracle::Cut cut{config.local, config.local_shift};
      expect_within_budget(ours, run_plainly(x, grad_out, nullptr, config, c.documents), x,
                           grad_out, oracle::attend_pieces(arrays, cut, scale, c.documents).out,
                           oracle::attend_pieces_adjoint(arrays, cut, grad, scale, c.documents),
                           config);
    };
    const Results local = run_local(x, grad_out, c.config, starts);
    EXPECT_TRUE(local.out.transpose(1, 2).is_contiguous());
    expect(local, c.config);
    Config whole = c.config;
    whole.local = c.tokens;
    whole.local_shift = 0;
    expect(run_dense(x, grad_out, starts), whole);
  }
}

/// The selection is frozen, and all documents but one change: that one stays, to the bit.
TEST_P(Packed, ADocumentDoesNotDependOnTheOthers) {
  Random random(202);
  int changed = 0;
  for (int i = 0; i < 30; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Tensor starts = starts_of(c);
    const Selection selection = select(x.q, x.k, x.v, c.config, {}, starts);
    const int64_t b = draw(random, 0, c.batch - 1);
    const std::vector<int64_t>& of_row = c.documents.starts[b];
    const int64_t d = draw(random, 0, static_cast<int64_t>(of_row.size()) - 1);
    const int64_t begin = of_row[d];
    const int64_t end = d + 1 < static_cast<int64_t>(of_row.size()) ? of_row[d + 1] : c.tokens;
    const auto own = [&](const Tensor& t) {
      return t.narrow(0, b, 1).narrow(2, begin, end - begin);
    };
    const auto moved = [&](const Tensor& t) {
      const Tensor other = at::randn_like(t).mul_(10);
      own(other).copy_(own(t));
      return other;
    };
    const Tensors y{moved(x.q), moved(x.k), moved(x.v)};
    const Tensor grad = moved(grad_out);
    const auto expect = [&](const Results& before, const Results& after) {
      for (size_t j = 0; j < 4; ++j) {
        EXPECT_TRUE(own(after.all()[j]).equal(own(before.all()[j]))) << kNames[j];
      }
      changed += !after.out.equal(before.out);
    };
    expect(run_packed(x, grad_out, c.config, selection, starts),
           run_packed(y, grad, c.config, selection, starts));
    expect(run_local(x, grad_out, c.config, starts), run_local(y, grad, c.config, starts));
    expect(run_dense(x, grad_out, starts), run_dense(y, grad, starts));
  }
  EXPECT_GT(changed, 45) << "the test must be able to see a change";
}

/// A row of one document, where there may be one, is what it is without: row for row, and on the
/// CPU, where stock attention is the same, to the bit.
TEST_P(Packed, OneDocumentIsAllThereIs) {
  Random random(203);
  for (int i = 0; i < 20; ++i) {
    Case c = random_packed(random);
    c.dim = 8;  // stock attention's order of sums may follow the layout where D is odd
    c.documents = {};
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Tensor starts = at::zeros({c.batch, 1}, x.q.options().dtype(at::kInt));
    const Selection expected = select(x.q, x.k, x.v, c.config);
    const Selection actual = select(x.q, x.k, x.v, c.config, {}, starts);
    EXPECT_TRUE(actual.rows.equal(expected.rows));
    EXPECT_TRUE(actual.slots.equal(expected.slots));
    const Results packed = run_packed(x, grad_out, c.config, {}, starts);
    if (device().is_cpu()) {
      expect_same_bits(packed,
                       run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
                         return attention(q, k, v, c.config);
                       }));
    } else {
      expect_the_oracles(c, x, grad_out, packed, to_array(actual.rows));
    }
  }
}

/// 1 to 4096 documents, of one token to all.
TEST_P(Packed, MayBeFewOrMany) {
  Random random(204);
  Case c;
  c.tokens = 70;
  c.dim = 4;
  c.config.pooling_factor = 2;
  c.config.budget = c.config.tile_budget = 3;
  c.config.local = 5;
  std::vector<int64_t> each(c.tokens);
  std::iota(each.begin(), each.end(), 0);
  for (const std::vector<int64_t>& starts :
       {std::vector<int64_t>{0}, {0, 1}, {0, 69}, {0, 1, 2, 3, 4, 8, 16}, each})
    for (const int64_t most : {starts.size(), size_t{4096}}) {
      c.documents = {{starts}, most};
      SCOPED_TRACE(::testing::PrintToString(c));
      const Tensors x = random_tensors(random, c, GetParam());
      const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
      const Selection selection = select(x.q, x.k, x.v, c.config, {}, starts_of(c));
      const Array rows = to_array(selection.rows);
      // The oracle looks for every row's tokens; so many rows that have none take it long.
      const int64_t kept = std::min<int64_t>(rows.size(2), 400);
      Array first({1, 1, kept});
      std::copy_n(rows.values.begin(), kept, first.values.begin());
      expect_the_oracles(c, x, grad_out, run_packed(x, grad_out, c.config, {}, starts_of(c)),
                         first);
    }
}

/// Scores that the caller brings are pooled inside documents.
TEST_P(Packed, TakeGivenScores) {
  Random random(205);
  for (int i = 0; i < 10; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const TokenScores norms = norm_scores(x.q, x.k);
    const Selection expected = select(x.q, x.k, x.v, c.config, {}, starts_of(c));
    const Selection actual = select(x.q, x.k, x.v, c.config, norms, starts_of(c));
    if (GetParam() == at::kDouble) {
      EXPECT_TRUE(actual.rows.equal(expected.rows));
    }
    const Tensor out = attention(x.q, x.k, x.v, c.config, norms, starts_of(c));
    EXPECT_TRUE(out.equal(attention(x.q, x.k, x.v, c.config, actual, starts_of(c))));
  }
}

TEST(PackedBatch, MayBeEmpty) {
  const Tensor q = at::randn({0, 2, 30, 4}, device()).requires_grad_();
  const Tensor starts = at::zeros({0, 3}, q.options().dtype(at::kInt));
  Config config;
  config.budget = config.tile_budget = 1;
  config.local = 8;
  for (const Tensor& out :
       {attention(q, q, q, config, {}, starts), local_attention(q, q, q, config, starts),
        dense_attention(q, q, q, {}, starts)}) {
    EXPECT_EQ(out.sizes(), q.sizes());
    EXPECT_EQ(torch::autograd::grad({out.sum()}, {q})[0].sizes(), q.sizes());
  }
}

TEST(PackedGradient, CannotBeDifferentiated) {
  const Tensor q = at::randn({1, 2, 40, 8}, device()).requires_grad_();
  const Tensor starts = at::zeros({1, 1}, q.options().dtype(at::kInt));
  const Tensor first = torch::autograd::grad({dense_attention(q, q, q, {}, starts).square().sum()},
                                             {q}, {}, {}, /*create_graph=*/true)[0];
  EXPECT_TRUE(
      throws<c10::NotImplementedError>([&] { torch::autograd::grad({first.sum()}, {q}); },
                                       {"lighthouse::attend_sequences", "double backward"}));
}

TEST(PackedErrors, NameTheArgument) {
  const Tensor q = at::randn({1, 4, 64, 8}), k = at::randn({1, 2, 64, 8});
  Config config;
  config.budget = config.tile_budget = 1;
  config.local = 16;
  const auto starts = [](std::vector<int32_t> values) {
    return at::tensor(values, at::kInt).unsqueeze(0);
  };
  const auto with = [&](const Tensor& given) {
    return [&, given] { attention(q, k, k, config, {}, given); };
  };
  EXPECT_NO_THROW(with(starts({0, 1, 63, 64, 64}))());
  const auto refused = [&](std::vector<int32_t> values, const std::string& what) {
    EXPECT_TRUE(throws<c10::ValueError>(with(starts(values)), {"document_starts[0]", what}));
    EXPECT_TRUE(throws<c10::ValueError>([&] { dense_attention(q, k, k, {}, starts(values)); },
                                        {"document_starts[0]", what}));
    EXPECT_TRUE(throws<c10::ValueError>([&] { local_attention(q, k, k, config, starts(values)); },
                                        {"document_starts[0]", what}));
  };
  refused({1, 5}, "[0] is 1; the first document must start at 0");
  refused({0, 9, 7}, "[2] is 7, after 9");
  refused({0, 9, 9}, "[2] is 9, after 9");
  refused({0, 65}, "[1] is 65, after 0");
  refused({0, -1}, "[1] is -1, after 0");
  refused({0, 64, 5}, "[2] is 5, after 64");
  EXPECT_TRUE(throws<c10::ValueError>(with(starts({0})[0]),
                                      {"document_starts has the shape [1]", "(batch, documents)"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(at::zeros({2, 1}, at::kInt)),
                                      {"document_starts has the shape [2, 1]", "[1, 1]"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(at::zeros({1, 0}, at::kInt)),
                                      {"document_starts has the shape [1, 0]"}));
  EXPECT_TRUE(throws<c10::TypeError>(with(at::zeros({1, 1}, at::kLong)),
                                     {"document_starts is Long", "Int"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(at::zeros({1, 1}, at::kInt).to(at::kMeta)),
                                      {"document_starts is on meta"}));
  config.scorer = Scorer::kDilated;
  EXPECT_TRUE(throws<c10::ValueError>(with(starts({0})), {"scorer is dilated", "norm"}));
  EXPECT_NO_THROW(attention(q, k, k, config, norm_scores(q, k), starts({0, 5})));
  config.scorer = Scorer::kNorm;
  config.local = 0;
  EXPECT_TRUE(throws<c10::ValueError>(with(starts({0})), {"local is 0", "document_starts"}));
}

TEST(PackedErrors, Operators) {
  const Tensor q = at::randn({1, 2, 64, 8});
  Config config;
  config.budget = config.tile_budget = 1;
  config.local = 16;
  const PackedDocuments documents =
      packed(at::tensor(std::vector<int32_t>{0, 5}, at::kInt).unsqueeze(0), q, config);
  const auto geometry = ops::geometry_list(64, config, 2);
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::score(q, q, q, geometry); },
                                      {"geometry has 2 documents", "document_roots"}));
  EXPECT_TRUE(
      throws<c10::ValueError>([&] { ops::score(q, q, q, geometry, documents.roots->slice(1, 1)); },
                              {"document_roots has the shape"}));
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] { ops::document_roots(documents.borders->slice(1, 1), geometry); },
      {"document_borders has the shape [1, 2]", "(batch, 3)"}));
  const Selection maps = select(q, q, q, config, {}, documents.borders->slice(1, 0, 2));
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::scatter(q, maps.rows, maps.slots, geometry); },
                                      {"geometry is [64, 3, 4, 1, 1, 2]", "to scatter"}));
  const auto borders = [](std::vector<int32_t> values) {
    return at::tensor(values, at::kInt).view({1, 1, -1});
  };
  const auto with = [&](const Tensor& given) {
    return [&, given] { ops::attend_sequences(q, q, q, given, 64, {}); };
  };
  EXPECT_NO_THROW(with(borders({0, 0, 64}))());
  EXPECT_TRUE(throws<c10::ValueError>(with(borders({1, 64})), {"borders[0][0] holds 1"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(borders({0, 9, 8, 64})), {"holds 8 after 9"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(borders({0, 63})), {"holds 63", "64 rows"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(borders({0, 65})), {"holds 65", "64 rows"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(borders({0})), {"borders has the shape [1, 1, 1]"}));
}

/// Compilers trace operators on the meta device: sizes, strides and types must be those of others.
TEST(PackedStages, MetaTensorsGetTheShapesOfOthers) {
  Random random(206);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, i % 2 ? at::kBFloat16 : at::kFloat);
    const Tensor starts = starts_of(c);
    const Selection maps = select(x.q, x.k, x.v, c.config, {}, starts);
    const auto geometry = ops::geometry_list(c.tokens, c.config, c.documents.most);
    const auto results = [&](at::Device where) {
      const auto on = [&](const Tensor& t) { return t.to(where); };
      const Tensor q = on(x.q), k = on(x.k), v = on(x.v), rows = on(maps.rows),
                   slots = on(maps.slots);
      std::vector<Tensor> all;
      const auto keep = [&](const auto&... tensors) { (all.push_back(tensors), ...); };
      const Tensor borders = ops::document_borders(on(starts), c.tokens);
      const Tensor table = ops::document_roots(borders, geometry);
      keep(borders, table);
      const auto scored = ops::score(q, k, v, geometry, table);
      std::apply(keep, scored);
      const Tensor roots = std::get<2>(scored);
      std::apply(keep, ops::gather(q, k, v, roots, rows, slots, geometry, table));
      const auto both =
          ops::attend_both(q, k, v, roots, rows, slots, geometry, 7, 3, {}, borders, table);
      std::apply(keep, both);
      const auto [out, sums, far_q, far_k, far_v, far_sums] = both;
      std::apply(keep,
                 ops::attend_both_backward(out, q, k, v, out, sums, far_q, far_k, far_v, far_sums,
                                           rows, slots, geometry, 7, 3, {}, borders, table));
      std::apply(keep, ops::gather_backward(far_q, far_k, far_v, slots, true, geometry, table));
      const Tensor cuts = borders.unsqueeze(1);
      const auto inside = ops::attend_sequences(q, k, v, cuts, c.tokens, {});
      std::apply(keep, inside);
      std::apply(keep, ops::attend_sequences_backward(q, q, k, v, std::get<0>(inside),
                                                      std::get<1>(inside), cuts, c.tokens, {}));
      return all;
    };
    expect_meta_of(results(device()), results(at::kMeta));
  }
}

/// The gather stage by itself, for an attend stage of one's own.
TEST(PackedStages, GatherAgreesWithTheOracle) {
  Random random(207);
  for (int i = 0; i < 10; ++i) {
    const Case c = random_packed(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = leaves(random_tensors(random, c, at::kDouble));
    const PackedDocuments documents = packed(starts_of(c), x.q, c.config);
    const Scored scored = score(x.q, x.k, x.v, c.config, {}, documents);
    const Selection maps = select(scored, c.tokens, c.config, documents.most());
    const Tensor q = gather(x.q, x.k, x.v, scored.roots, maps, c.config, documents).q;
    const Array rows = to_array(maps.rows);
    EXPECT_TRUE(
        close(to_array(q), oracle::gather(to_array(x.q), rows, c.config, c.documents), 1e-14));
    const Tensor grad = at::randn_like(q);
    EXPECT_TRUE(close(to_array(torch::autograd::grad({q}, {x.q}, {grad})[0]),
                      oracle::gather_adjoint(to_array(grad), rows, c.tokens, c.config, c.documents),
                      1e-14));
  }
}

}  // namespace
}  // namespace lighthouse::testing
