#include "lighthouse/distributed/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <limits>

#include "lighthouse/core/geometry.h"
#include "lighthouse/core/settings.h"
#include "lighthouse/nn/attention.h"
#include "lighthouse/ops/attention.h"
#include "tests/distributed/ranks.h"
#include "tests/distributed/shards.h"
#include "tests/support/compare.h"
#include "tests/support/gradients.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

/// Context parallelism, with threads as ranks.
namespace lighthouse::testing {
namespace {

using at::Tensor;
using distributed::Context;
using distributed::Exchange;
using distributed::World;
using nn::Mode;

struct Problem {
  Case c;
  Mode mode = Mode::kLighthouse;
  Tensors x;
  Tensor grad_out;
  std::optional<TokenScores> scores;
  std::optional<Tensor> starts;  ///< of documents
};

std::ostream& operator<<(std::ostream& out, const Problem& problem) {
  return out << to_string(problem.mode) << ", " << problem.c << ", " << describe(problem.c.config)
             << ", " << problem.x.q.scalar_type();
}

/// On one device.
Results run_alone(const Problem& p) {
  return run_by(p.x, p.grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    if (p.mode == Mode::kDense) return dense_attention(q, k, v, p.c.config.scale, p.starts);
    if (p.mode == Mode::kLocal) return local_attention(q, k, v, p.c.config, p.starts);
    return attention(q, k, v, p.c.config, p.scores ? Given(*p.scores) : Given(), p.starts);
  });
}

/// One rank's part.
Results run_shard(const Problem& p, const World& world, Exchange exchange, bool zigzag) {
  const auto shard = [&](const Tensor& t) {
    return shard_of(t, world.rank(), world.size(), zigzag);
  };
  const Context context{.group = world.group(), .exchange = exchange, .zigzag = zigzag};
  return run_by({shard(p.x.q), shard(p.x.k), shard(p.x.v)}, shard(p.grad_out),
                [&](const Tensor& q, const Tensor& k, const Tensor& v) {
                  if (p.mode == Mode::kDense) {
                    return distributed::dense_attention(q, k, v, context, p.c.config.scale,
                                                        p.starts);
                  }
                  if (p.mode == Mode::kLocal) {
                    return distributed::local_attention(q, k, v, p.c.config, context, p.starts);
                  }
                  std::optional<TokenScores> scores;
                  if (p.scores) scores = {shard(p.scores->q), shard(p.scores->k)};
                  return distributed::attention(q, k, v, p.c.config, context, scores, p.starts);
                });
}

/// All problems by threads as ranks, put together.
std::vector<Results> run_together(const std::vector<Problem>& problems, int64_t ranks,
                                  Exchange exchange, bool zigzag) {
  std::vector<std::vector<Results>> shards(problems.size(), std::vector<Results>(ranks));
  run_ranks(ranks, [&](const World& world) {
    for (size_t i = 0; i < problems.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << problems[i]);
      shards[i][world.rank()] = run_shard(problems[i], world, exchange, zigzag);
    }
  });
  std::vector<Results> results;
  for (const std::vector<Results>& of_ranks : shards) {
    const auto whole = [&](Tensor Results::*member) {
      std::vector<Tensor> parts;
      for (const Results& part : of_ranks) parts.push_back(part.*member);
      return whole_of(parts, zigzag);
    };
    results.push_back({whole(&Results::out), whole(&Results::grad_q), whole(&Results::grad_k),
                       whole(&Results::grad_v)});
  }
  return results;
}

const std::vector<at::ScalarType> kTypes{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

/// Many threads take long on few cores.
std::vector<at::ScalarType> types_for(int64_t ranks) {
  return ranks < 8 ? kTypes : std::vector{at::kFloat};
}

void fill(Random& random, Problem& p, at::ScalarType type) {
  p.x = random_tensors(random, p.c, type);
  p.grad_out = to_tensor(normals(random, p.c.q_shape()), type);
}

// Heads for tokens: the result is one device's.

/// @param heads_of_groups query heads, and key/value heads
Problem heads_problem(Random& random, Mode mode, int64_t ranks,
                      std::pair<int64_t, int64_t> heads_of_groups, at::ScalarType type) {
  Problem p;
  p.mode = mode;
  p.c = random_case(random);
  std::tie(p.c.heads, p.c.groups) = heads_of_groups;
  // How stock attention multiplies single columns depends on how far apart they lie.
  p.c.dim = std::max<int64_t>(p.c.dim, 2);
  // Enough tokens for the tiles, and a multiple of the chunks.
  p.c.tokens = (p.c.tokens / (2 * ranks) + 1) * 2 * ranks;
  p.c.config.scorer = static_cast<Scorer>(draw(random, 0, 2));
  if (mode == Mode::kLocal || draw(random, 0, 1)) {
    p.c.config.local = draw(random, 1, p.c.tokens + 3);
    p.c.config.local_shift = draw(random, 0, p.c.config.local - 1);
  }
  if (draw(random, 0, 2) == 0) p.c.config.scale = 0.4;
  fill(random, p, type);
  if (mode == Mode::kLighthouse && draw(random, 0, 3) == 0) {
    p.scores = {to_tensor(normals(random, {p.c.batch, p.c.heads, p.c.tokens}), at::kFloat),
                to_tensor(normals(random, {p.c.batch, p.c.groups, p.c.tokens}), at::kFloat)};
  }
  if ((mode == Mode::kDense || p.c.config.local > 0) && draw(random, 0, 1)) {
    p.c.documents = random_documents(random, p.c.batch, p.c.tokens);
    p.starts = starts_of(p.c);
    if (!p.scores) p.c.config.scorer = Scorer::kNorm;
  }
  return p;
}

class Heads : public ::testing::TestWithParam<int64_t> {
  const Threads one_{1};  // as the ranks have
};
INSTANTIATE_TEST_SUITE_P(Ranks, Heads, ::testing::Values(1, 2, 4));

TEST_P(Heads, GiveTheBitsOfOneDevice) {
  const int64_t ranks = GetParam();
  Random random(200);
  std::vector<Problem> problems;
  for (const at::ScalarType type : kTypes)
    for (const Mode mode : {Mode::kDense, Mode::kLighthouse, Mode::kLocal})
      for (const auto& heads : {std::pair{ranks, ranks}, std::pair{2 * ranks, ranks}}) {
        problems.push_back(heads_problem(random, mode, ranks, heads, type));
      }
  for (const bool zigzag : {false, true}) {
    const auto together = run_together(problems, ranks, Exchange::kHeads, zigzag);
    for (size_t i = 0; i < problems.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << problems[i] << ", zigzag " << zigzag);
      const Results alone = run_alone(problems[i]);
      for (size_t j = 0; j < 4; ++j) {
        EXPECT_TRUE(together[i].all()[j].equal(alone.all()[j])) << kNames[j];
      }
    }
  }
}

/// Fewer key/value heads than ranks, or a number that ranks do not divide: k and v are copied, and
/// the ranks that have a group's query heads select alike. Sums over copies of the gradients of k
/// and v are in another order than one device's.
TEST_P(Heads, AreOneDevicesWhereKeysAndValuesAreCopied) {
  const int64_t ranks = GetParam();
  if (ranks == 1) return;
  Random random(201);
  std::vector<Problem> problems;
  for (const at::ScalarType type : kTypes)
    for (const Mode mode : {Mode::kDense, Mode::kLighthouse, Mode::kLighthouse, Mode::kLocal})
      for (const auto& heads :
           {std::pair{2 * ranks, int64_t{1}}, std::pair{3 * ranks, int64_t{3}}}) {
        problems.push_back(heads_problem(random, mode, ranks, heads, type));
      }
  const auto together = run_together(problems, ranks, Exchange::kHeads, false);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << problems[i]);
    const Results alone = run_alone(problems[i]);
    EXPECT_TRUE(together[i].out.equal(alone.out));
    EXPECT_TRUE(together[i].grad_q.equal(alone.grad_q));
    // Each copy's gradient is stored, and so is every partial sum of them.
    const double copies = static_cast<double>(ranks);
    const double tolerance = (2 * copies + 2) * rounding(problems[i].x.q.scalar_type()).unit;
    EXPECT_TRUE(close(to_array(together[i].grad_k), to_array(alone.grad_k), tolerance));
    EXPECT_TRUE(close(to_array(together[i].grad_v), to_array(alone.grad_v), tolerance));
  }
}

// Chunks: the result is that of one device that cuts the sequence into 2 W chunks.

/// Chunks side by side in the batch: (B, H, n c, ...) -> (B n, H, c, ...), and back.
Tensor fold(const Tensor& tokens, int64_t chunks) {
  return tokens.unflatten(2, {chunks, -1}).movedim(2, 1).flatten(0, 1);
}
Tensor unfold(const Tensor& folded, int64_t chunks) {
  return folded.unflatten(0, {-1, chunks}).movedim(1, 2).flatten(2, 3);
}
Array fold(const Array& tokens, int64_t chunks) {
  return to_array(fold(to_tensor(tokens), chunks));
}
Array unfold(const Array& folded, int64_t chunks) {
  return to_array(unfold(to_tensor(folded), chunks));
}
oracle::Qkv fold(const oracle::Qkv& x, int64_t chunks) {
  return {fold(x.q, chunks), fold(x.k, chunks), fold(x.v, chunks)};
}
oracle::Qkv unfold(const oracle::Qkv& x, int64_t chunks) {
  return {unfold(x.q, chunks), unfold(x.k, chunks), unfold(x.v, chunks)};
}
Tensors fold(const Tensors& x, int64_t chunks) {
  return {fold(x.q, chunks), fold(x.k, chunks), fold(x.v, chunks)};
}

/// The definition, by the oracle.
struct Defined {
  Array out;
  oracle::Qkv grad;
};
/// @param rows of each chunk, (B 2 W, G, s); none where attention is dense
Defined define(const Problem& p, const Array* rows, const Config& config, int64_t chunks) {
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(p.c.dim)));
  const oracle::Qkv x = to_arrays(p.x);
  const Array grad_out = to_array(p.grad_out);
  if (rows == nullptr) {
    return {
        oracle::attend(x, scale).out,
        oracle::attend_adjoint(x, {grad_out, Array({p.c.batch, p.c.heads, p.c.tokens})}, scale)};
  }
  const int64_t tokens = p.c.tokens / chunks;
  const oracle::Qkv x_chunks = fold(x, chunks);
  const Array grad_chunks = fold(grad_out, chunks);
  const auto gather_all = [&](const Array& a) {
    return unfold(oracle::gather(a, *rows, config), chunks);
  };
  const oracle::Qkv gathered{gather_all(x_chunks.q), gather_all(x_chunks.k),
                             gather_all(x_chunks.v)};
  const oracle::Attended far_all = oracle::attend(gathered, scale);
  const oracle::Attended far{fold(far_all.out, chunks), fold(far_all.lse, chunks)};
  const auto gather_adjoint = [&](const oracle::Attended& grad_far) {
    const oracle::Qkv grad =
        fold(oracle::attend_adjoint(
                 gathered, {unfold(grad_far.out, chunks), unfold(grad_far.lse, chunks)}, scale),
             chunks);
    return oracle::Qkv{oracle::gather_adjoint(grad.q, *rows, tokens, config),
                       oracle::gather_adjoint(grad.k, *rows, tokens, config),
                       oracle::gather_adjoint(grad.v, *rows, tokens, config)};
  };
  if (config.local == 0) {
    return {unfold(oracle::scatter(far.out, *rows, tokens, config), chunks),
            unfold(gather_adjoint(
                       {oracle::scatter_adjoint(grad_chunks, *rows, config), Array(far.lse.shape)}),
                   chunks)};
  }
  const oracle::Cut cut{config.local, config.local_shift};
  const oracle::Attended near = oracle::attend_pieces(x_chunks, cut, scale);
  const oracle::MergeGradients grad = oracle::merge_adjoint(near, far, *rows, config, grad_chunks);
  oracle::Qkv sum = oracle::attend_pieces_adjoint(x_chunks, cut, grad.near, scale);
  const oracle::Qkv of_far = gather_adjoint(grad.far);
  const auto add = [](Array& to, const Array& from) {
    for (size_t i = 0; i < to.values.size(); ++i) to.values[i] += from.values[i];
  };
  add(sum.q, of_far.q);
  add(sum.k, of_far.k);
  add(sum.v, of_far.v);
  return {unfold(oracle::merge(near, far, *rows, config).out, chunks), unfold(sum, chunks)};
}

struct Sum {
  Tensor out, logsumexp;
};
/// Attention by products, where `seen` is true.
Sum attend_plainly(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& seen,
                   double scale) {
  const Tensor scores =
      q.matmul(k.transpose(2, 3))
          .mul(scale)
          .masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
  const Tensor logsumexp = scores.logsumexp(-1);
  return {(scores - logsumexp.unsqueeze(-1)).exp().matmul(v), logsumexp};
}

/// The definition by plain code: sums in float32, stored in the type of the inputs as often as
/// ours.
Results run_plainly(const Problem& p, const Array* rows, const Config& config, int64_t chunks) {
  const at::ScalarType type = p.x.q.scalar_type();
  const at::ScalarType sums = type == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t shared = p.c.heads / p.c.groups, tokens = p.c.tokens / chunks;
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(p.c.dim)));
  const auto stored = [&](const Tensor& t) { return t.to(type).to(sums); };
  const auto each_head = [&](const Tensor& t) { return t.repeat_interleave(shared, 1); };
  const auto triangle = [](int64_t n) { return at::ones({n, n}, at::kBool).tril(); };
  return run_by(p.x, p.grad_out, [&](const Tensor& q_in, const Tensor& k_in, const Tensor& v_in) {
    const Tensor q = q_in.to(sums), k = each_head(k_in.to(sums)), v = each_head(v_in.to(sums));
    if (rows == nullptr) {
      return attend_plainly(q, k, v, triangle(p.c.tokens), scale).out.to(type);
    }
    const auto identity = [&](int64_t size) {
      const std::vector<int64_t> shape{p.c.batch * chunks, p.c.groups, size, size};
      return to_array(at::eye(size, at::kDouble).expand(shape));
    };
    const int64_t length = rows->size(2);
    const Tensor pooling =
        each_head(to_tensor(oracle::gather(identity(tokens), *rows, config), sums));
    const Tensor heard =
        each_head(to_tensor(oracle::scatter(identity(length), *rows, tokens, config), sums));
    const auto gathered = [&](const Tensor& t) {
      return unfold(stored(pooling.matmul(fold(t, chunks))), chunks);
    };
    const Sum far_all =
        attend_plainly(gathered(q), gathered(k), gathered(v), triangle(length * chunks), scale);
    const Tensor far_out = fold(stored(far_all.out), chunks);
    if (config.local == 0) return unfold(heard.matmul(far_out), chunks).to(type);
    const Tensor piece = at::arange(tokens, at::kLong)
                             .add(config.local - config.local_shift)
                             .floor_divide(config.local);
    const Tensor together = piece.unsqueeze(0).eq(piece.unsqueeze(1));
    const Sum near = attend_plainly(fold(q, chunks), fold(k, chunks), fold(v, chunks),
                                    triangle(tokens).logical_and(together), scale);
    const Tensor count = heard.sum(-1).clamp_min(1);
    const Tensor masses = fold(far_all.logsumexp, chunks)
                              .unsqueeze(2)
                              .expand_as(heard)
                              .masked_fill(heard.eq(0), -std::numeric_limits<double>::infinity())
                              .sub(count.log().unsqueeze(-1));
    const Tensor all = at::cat({near.logsumexp.unsqueeze(-1), masses}, -1);
    const Tensor weights = all.sub(all.logsumexp(-1, /*keepdim=*/true)).exp();
    return unfold(weights.narrow(-1, 0, 1) * stored(near.out) +
                      weights.narrow(-1, 1, length).matmul(far_out),
                  chunks)
        .to(type);
  });
}

Problem chunks_problem(Random& random, Mode mode, bool pieces, int64_t ranks, at::ScalarType type) {
  Problem p;
  p.mode = mode;
  p.c = random_case(random);
  const int64_t chunks = 2 * ranks;
  p.c.config.levels = draw(random, 2, 3);
  p.c.config.pooling_factor = draw(random, 2, 3);
  const auto window =
      static_cast<int64_t>(std::pow(p.c.config.pooling_factor, p.c.config.levels - 1));
  // A chunk may have fewer tokens than a window, and an odd number.
  const int64_t tokens = draw(random, 2, 20), roots = (tokens + window - 1) / window;
  p.c.tokens = chunks * tokens;
  p.c.config.tile_budget = draw(random, 1, 4);
  p.c.config.budget =
      chunks * p.c.config.tile_budget * draw(random, 1, std::min<int64_t>(roots, 2));
  p.c.heads = p.c.groups * draw(random, 1, 3);
  if (pieces) {
    p.c.config.local = draw(random, 1, tokens + 3);
    p.c.config.local_shift = draw(random, 0, p.c.config.local - 1);
  }
  if (draw(random, 0, 2) == 0) p.c.config.scale = 0.4;
  fill(random, p, type);
  if (mode == Mode::kLighthouse && draw(random, 0, 3) == 0) {
    p.scores = {to_tensor(normals(random, {p.c.batch, p.c.heads, p.c.tokens}), at::kFloat),
                to_tensor(normals(random, {p.c.batch, p.c.groups, p.c.tokens}), at::kFloat)};
  }
  return p;
}

/// Four times the error of plain code, a unit for each rounding of ours, those of each rank's part
/// included, and one of the type of sums for each of their terms.
void expect_definition(const Results& ours, const Problem& p, int64_t ranks) {
  const int64_t chunks = 2 * ranks;
  const Config config = distributed::chunk_config(p.c.config, ranks);
  std::optional<Array> rows;
  if (p.mode == Mode::kLighthouse) {
    const Tensors x = fold(p.x, chunks);
    std::optional<TokenScores> scores;
    if (p.scores) scores = {fold(p.scores->q, chunks), fold(p.scores->k, chunks)};
    rows = to_array(select(x.q, x.k, x.v, config, scores).rows);
  }
  const Array* given = rows ? &*rows : nullptr;
  const Defined expected = define(p, given, config, chunks);
  const Results plain = run_plainly(p, given, config, chunks);
  const Array* arrays[] = {&expected.out, &expected.grad.q, &expected.grad.k, &expected.grad.v};
  const Rounding type = rounding(p.x.q.scalar_type());
  for (size_t i = 0; i < 4; ++i) {
    const double tolerance = 4 * relative_error(to_array(plain.all()[i]), *arrays[i]) +
                             static_cast<double>(config.levels + 2 + ranks) * type.unit +
                             static_cast<double>(p.c.tokens + p.c.dim) * accumulator(type).unit;
    EXPECT_TRUE(close(to_array(ours.all()[i]), *arrays[i], tolerance)) << kNames[i];
  }
}

class Chunks : public ::testing::TestWithParam<std::tuple<Exchange, int64_t>> {
  const Threads one_{1};
};
INSTANTIATE_TEST_SUITE_P(Ranks, Chunks,
                         ::testing::Combine(::testing::Values(Exchange::kGather, Exchange::kRing),
                                            ::testing::Values(1, 2, 4)));
INSTANTIATE_TEST_SUITE_P(ManyRanks, Chunks,
                         ::testing::Combine(::testing::Values(Exchange::kRing),
                                            ::testing::Values(8)));

TEST_P(Chunks, AgreeWithTheOracle) {
  const auto [exchange, ranks] = GetParam();
  Random random(202);
  std::vector<Problem> problems;
  for (const at::ScalarType type : types_for(ranks)) {
    problems.push_back(chunks_problem(random, Mode::kDense, false, ranks, type));
    for (int i = 0; i < 3; ++i) {
      problems.push_back(chunks_problem(random, Mode::kLighthouse, false, ranks, type));
      problems.push_back(chunks_problem(random, Mode::kLighthouse, true, ranks, type));
    }
  }
  const auto together = run_together(problems, ranks, exchange, true);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << problems[i]);
    expect_definition(together[i], problems[i], ranks);
  }
}

/// Pieces alone need nothing of other ranks.
TEST_P(Chunks, HavePiecesOfTheirOwn) {
  const auto [exchange, ranks] = GetParam();
  Random random(203);
  std::vector<Problem> problems;
  for (const at::ScalarType type : types_for(ranks)) {
    problems.push_back(chunks_problem(random, Mode::kLocal, true, ranks, type));
  }
  const auto together = run_together(problems, ranks, exchange, true);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << problems[i]);
    Problem folded = problems[i];
    folded.x = fold(folded.x, 2 * ranks);
    folded.grad_out = fold(folded.grad_out, 2 * ranks);
    const Results alone = run_alone(folded);
    for (size_t j = 0; j < 4; ++j) {
      EXPECT_TRUE(together[i].all()[j].equal(unfold(alone.all()[j], 2 * ranks))) << kNames[j];
    }
  }
}

TEST(ChunkConfig, GivesEachChunkItsPartOfTheBudget) {
  Config config;  // k 1536, m 128
  EXPECT_EQ(distributed::chunk_config(config, 4).budget, 192);
  EXPECT_EQ(distributed::chunk_config(config, 4).tile_budget, 96);
  EXPECT_EQ(distributed::chunk_config(config, 1).tile_budget, 128);
  config.budget = 12;
  config.tile_budget = 12;
  EXPECT_EQ(distributed::chunk_config(config, 2).tile_budget, 3);
  EXPECT_TRUE(throws<std::invalid_argument>([&] { distributed::chunk_config(config, 4); },
                                            {"budget is 12", "multiple of 8"}));
}

TEST(ContextDense, IsByTheWholeSequenceOrByTheChunk) {
  run_ranks(4, [](const World& world) {
    for (const Exchange exchange : {Exchange::kHeads, Exchange::kRing}) {
      const Context context{.group = world.group(), .exchange = exchange};
      EXPECT_EQ(distributed::dense_because(24576, {}, context), "");
      EXPECT_NE(distributed::dense_because(512, {}, context), "");
    }
    // Short for one rank, long enough for four.
    EXPECT_EQ(distributed::dense_because(8192, {}, {.group = world.group()}), "");
    EXPECT_NE(distributed::dense_because(8192, {}, {}), "");
    // Documents that a row may have make roots, and so rows.
    EXPECT_NE(distributed::dense_because(8192, {}, {.group = world.group()}, 32768), "");
  });
}

/// Without a group a sequence is whole, and attention is one device's.
TEST(ContextOfOne, IsAttention) {
  Random random(204);
  for (const Mode mode : {Mode::kDense, Mode::kLighthouse, Mode::kLocal}) {
    const Problem p = heads_problem(random, mode, 1, {2, 2}, at::kFloat);
    const Results ours = run_shard(p, World(), Exchange::kRing, true), alone = run_alone(p);
    for (size_t j = 0; j < 4; ++j) EXPECT_TRUE(ours.all()[j].equal(alone.all()[j])) << kNames[j];
  }
}

/// The module that models use, in each mode, and in evaluation.
TEST(ContextModule, AttendsAcrossRanks) {
  run_ranks(2, [](const World& world) {
    Random random(205);
    Case c;
    c.config.budget = c.config.tile_budget = 4;
    c.config.local = 30;
    c.tokens = 256;
    c.heads = c.groups = 2;
    c.dim = 8;
    const Tensors whole = random_tensors(random, c, at::kFloat);
    const auto shard = [&](const Tensor& t) { return shard_of(t, world.rank(), 2, true); };
    const Context context{.group = world.group(), .zigzag = true};
    nn::Attention module(nn::AttentionOptions{.config = c.config, .context = context});
    const auto is_part_of = [&](const Tensor& expected) {
      EXPECT_TRUE(
          module->forward(shard(whole.q), shard(whole.k), shard(whole.v)).equal(shard(expected)));
    };
    EXPECT_TRUE(module->uses_lighthouse(128));
    is_part_of(attention(whole.q, whole.k, whole.v, c.config));
    const Tensor starts = at::tensor(std::vector<int32_t>{0, 150}).unsqueeze(0);
    EXPECT_TRUE(module->forward(shard(whole.q), shard(whole.k), shard(whole.v), starts)
                    .equal(shard(attention(whole.q, whole.k, whole.v, c.config, {}, starts))));
    module->set_mode(Mode::kLocal);
    is_part_of(local_attention(whole.q, whole.k, whole.v, c.config));
    module->set_mode(Mode::kDense);
    is_part_of(dense_attention(whole.q, whole.k, whole.v));
    module->set_mode(Mode::kLighthouse);
    module->eval();
    is_part_of(dense_attention(whole.q, whole.k, whole.v));
    module->train();
    module->set_context({});  // each rank by itself
    EXPECT_EQ(module->uses_lighthouse(128), dense_because(128, c.config).empty());
  });
}

TEST(ContextErrors, NameTheArgument) {
  run_ranks(2, [](const World& world) {
    const Tensor q = at::randn({1, 3, 10, 4}), odd = at::randn({1, 2, 7, 4});
    Config config;
    config.budget = config.tile_budget = 2;
    const Context heads{.group = world.group()};
    const Context ring{.group = world.group(), .exchange = Exchange::kRing};
    EXPECT_TRUE(throws<c10::ValueError>([&] { distributed::dense_attention(q, q, q, heads); },
                                        {"q has 3 heads", "2 ranks", "gather and ring"}));
    EXPECT_TRUE(throws<c10::ValueError>([&] { distributed::dense_attention(odd, odd, odd, ring); },
                                        {"q has 7 rows", "even"}));
    EXPECT_TRUE(
        throws<c10::ValueError>([&] { distributed::attention(odd, odd, odd, config, ring); },
                                {"budget is 2", "multiple of 4"}));
    config.budget = 4;
    EXPECT_TRUE(
        throws<c10::ValueError>([&] { distributed::attention(odd, odd, odd, config, ring); },
                                {"q has 7 tokens", "multiple of 4"}));
    EXPECT_TRUE(
        throws([&] { distributed::dense_attention(q, q, q, Context{.group = "none"}); }, {"none"}));
    const Tensor pair = at::randn({1, 2, 8, 4}), one = pair.slice(1, 0, 1);
    const Tensor starts = at::zeros({1, 1}, at::kInt);
    config.local = 2;
    const auto needs_heads = [](const auto& act) {
      return throws<c10::ValueError>(act, {"exchange is ring", "document_starts", "heads"});
    };
    EXPECT_TRUE(
        needs_heads([&] { distributed::dense_attention(pair, pair, pair, ring, {}, starts); }));
    EXPECT_TRUE(
        needs_heads([&] { distributed::local_attention(pair, pair, pair, config, ring, starts); }));
    EXPECT_TRUE(
        needs_heads([&] { distributed::attention(pair, pair, pair, config, ring, {}, starts); }));
    // Where ranks have copies of a head too, they score it before one device would.
    config.scorer = Scorer::kDilated;
    EXPECT_TRUE(throws<c10::ValueError>(
        [&] { distributed::attention(pair, one, one, config, heads, {}, starts); },
        {"scorer is dilated", "document_starts"}));
  });
}

TEST(ContextErrors, NameTheRankWhosePeerLeft) {
  run_ranks(2, [](const World& world) {
    if (world.rank() == 1) return;
    const Tensor q = at::randn({1, 2, 8, 4});
    const auto attend_by = [&](Exchange exchange) {
      distributed::dense_attention(q, q, q, {.group = world.group(), .exchange = exchange});
    };
    for (const auto exchange : {Exchange::kGather, Exchange::kRing}) {
      EXPECT_TRUE(throws<distributed::PeerError>(
          [&] { attend_by(exchange); }, {"rank 0 of 2 could not exchange keys and values"}));
    }
    EXPECT_TRUE(throws<distributed::PeerError>(
        [&] { attend_by(Exchange::kHeads); }, {"rank 0 of 2 could not exchange heads for tokens"}));
  });
}

TEST(ContextErrors, RefuseASecondDerivative) {
  run_ranks(2, [](const World& world) {
    const Tensor q = at::randn({1, 2, 8, 4}).requires_grad_();
    const Context ring{.group = world.group(), .exchange = Exchange::kRing};
    const Tensor loss = distributed::dense_attention(q, q, q, ring).square().sum();
    const auto grad = torch::autograd::grad({loss}, {q}, {}, {}, /*create_graph=*/true);
    EXPECT_TRUE(
        throws([&] { grad[0].sum().backward(); }, {"attend_across has no double backward"}));
  });
}

}  // namespace
}  // namespace lighthouse::testing
