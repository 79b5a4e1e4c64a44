#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <functional>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/stages.h"
#include "lighthouse/ops/tensor.h"

/// What only a GPU has to show: sizes, memory, graphs.
namespace lighthouse::testing {
namespace {

using at::Tensor;

struct Inputs {
  Tensor q, k, v;

  Inputs(int64_t tokens, int64_t heads, int64_t groups, at::ScalarType type = at::kBFloat16) {
    const auto draw = [&](int64_t columns) {
      const auto options = at::TensorOptions().device(at::kCUDA).dtype(type);
      return at::randn({1, tokens, columns, 128}, options).transpose(1, 2);
    };
    q = draw(heads);
    k = draw(groups);
    v = draw(groups);
  }
  std::vector<Tensor> all() const { return {q, k, v}; }
  void need_gradients() const {
    for (const Tensor& tensor : all()) tensor.set_requires_grad(true);
  }
};

int64_t allocated_bytes(bool peak) {
  const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0);
  const auto& bytes =
      stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  return peak ? bytes.peak : bytes.current;
}

TEST(Memory, FullLengthInputsAreNotKeptForTheBackwardPass) {
  Inputs leaf(98304, 8, 8);
  leaf.need_gradients();
  // A product with a number keeps nothing for its backward.
  Tensor q = leaf.q.mul(2), k = leaf.k.mul(2), v = leaf.v.mul(2);
  const Tensor out = attention(q, k, v);
  const int64_t before = allocated_bytes(false);
  q.reset();
  k.reset();
  v.reset();
  EXPECT_GE(before - allocated_bytes(false), 3 * 98304 * 8 * 128 * 2);
  out.sum().backward();
  EXPECT_TRUE(leaf.q.grad().defined());
}

/// Beyond the inputs and the incoming gradient; output and gradients are 0.75 GiB of it.
TEST(Memory, ThePapersLayerTakesAtMostElevenTenthsOfAGibibyte) {
  const Inputs x(98304, 8, 8);
  x.need_gradients();
  const Tensor grad_out = at::randn({1, 98304, 8, 128}, x.q.options()).transpose(1, 2);
  c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0);
  const int64_t before = allocated_bytes(false);
  const Tensor out = attention(x.q, x.k, x.v);
  const auto grads = torch::autograd::grad({out}, x.all(), {grad_out});
  EXPECT_LE(static_cast<double>(allocated_bytes(true) - before) / (1 << 30), 1.1);
}

int64_t peak_of(const Inputs& x, const std::function<Tensor()>& attend) {
  const Tensor grad_out =
      at::randn({1, x.q.size(2), x.q.size(1), 128}, x.q.options()).transpose(1, 2);
  torch::autograd::grad({attend()}, x.all(), {grad_out});  // to make workspaces
  c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0);
  torch::autograd::grad({attend()}, x.all(), {grad_out});
  return allocated_bytes(true);
}

TEST(Memory, WithPiecesItIsNearlyThatOfDenseAttention) {
  const Inputs x(98304, 8, 8);
  x.need_gradients();
  Config config;
  config.budget = 512;
  config.local = 2048;
  const int64_t dense = peak_of(x, [&] { return dense_attention(x.q, x.k, x.v); });
  for (const int64_t shift : {0, 1024}) {
    config.local_shift = shift;
    const int64_t pieces = peak_of(x, [&] { return attention(x.q, x.k, x.v, config); });
    EXPECT_LE(static_cast<double>(pieces), 1.15 * static_cast<double>(dense)) << shift;
  }
}

/// Captures a training step, which returns three gradients and the output, as a graph. Expects,
/// after each change of its inputs, that the replay gives what the step does.
void expect_replays(const std::function<std::vector<Tensor>()>& step,
                    const std::vector<std::function<void()>>& changes) {
  const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  c10::cuda::device_synchronize();  // the inputs were made on another stream
  step();
  step();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const std::vector<Tensor> captured = step();
  graph.capture_end();
  for (const auto& change : changes) {
    change();
    graph.replay();
    const std::vector<Tensor> eager = step();
    // The output to the bit; gradients to what the inner backward's order of sums leaves open.
    EXPECT_TRUE(captured.back().equal(eager.back()));
    for (size_t j = 0; j < 3; ++j) {
      const double error =
          (captured[j].to(at::kFloat) - eager[j].to(at::kFloat)).abs().max().item<double>();
      EXPECT_LE(error, 0x1p-7 * eager[j].abs().max().item<double>()) << j;
    }
  }
}

class Graph : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(LocalTokens, Graph, ::testing::Values(0, 1024));

TEST_P(Graph, ATrainingStepIsCapturedAndReplayed) {
  const Inputs x(16384, 4, 2);
  x.need_gradients();
  const Tensor grad_out = at::randn({1, 16384, 4, 128}, x.q.options()).transpose(1, 2);
  Config config;
  config.budget = 256;
  config.local = GetParam();
  const auto step = [&] {
    const Tensor out = attention(x.q, x.k, x.v, config);
    std::vector<Tensor> results = torch::autograd::grad({out}, x.all(), {grad_out});
    results.push_back(out.detach());
    return results;
  };
  const auto draw = [&] {
    const at::NoGradGuard no_grad;
    for (const Tensor& tensor : x.all()) tensor.normal_();
  };
  expect_replays(step, {draw, draw, draw});
}

Tensor starts_at(std::vector<int32_t> starts) {
  return at::tensor(starts, at::kInt).unsqueeze(0).to(at::kCUDA);
}

using Attention = std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v)>;

/// Gradients of q, k and v, and the output.
std::vector<Tensor> attended(const Inputs& x, const Tensor& grad_out, at::ScalarType type,
                             const Attention& attend) {
  std::vector<Tensor> in;
  for (const Tensor& t : x.all()) in.push_back(t.detach().to(type).requires_grad_());
  const Tensor out = attend(in[0], in[1], in[2]);
  std::vector<Tensor> results = torch::autograd::grad({out}, in, {grad_out.to(type)});
  results.push_back(out.detach());
  return results;
}

/// With pieces beside, inside them alone, and dense.
std::vector<Attention> all_inside(const Config& config, const Selection& selection,
                                  const Tensor& starts) {
  return {[=](const Tensor& q, const Tensor& k, const Tensor& v) {
            return attention(q, k, v, config, selection, starts);
          },
          [=](const Tensor& q, const Tensor& k, const Tensor& v) {
            return local_attention(q, k, v, config, starts);
          },
          [=](const Tensor& q, const Tensor& k, const Tensor& v) {
            return dense_attention(q, k, v, {}, starts);
          }};
}

/// Documents by flash attention for sequences of several lengths, and by products in float32.
TEST(Documents, FlashAgreesWithProducts) {
  const Inputs x(4096, 4, 2);
  Config config;
  config.budget = 128;
  config.local = 512;
  config.local_shift = 256;
  const Tensor starts = starts_at({0, 1, 1000, 1001, 1700, 4095, 4096, 4096});
  const Tensor grad_out = at::randn({1, 4096, 4, 128}, x.q.options()).transpose(1, 2);
  const Selection selection = select(x.q, x.k, x.v, config, {}, starts);
  for (const Attention& attend : all_inside(config, selection, starts)) {
    const std::vector<Tensor> actual = attended(x, grad_out, at::kBFloat16, attend);
    const std::vector<Tensor> expected = attended(x, grad_out, at::kFloat, attend);
    for (size_t j = 0; j < 4; ++j) {
      const Tensor error = (actual[j].to(at::kFloat) - expected[j]).abs().max();
      EXPECT_LE(error.item<double>(), 0x1p-5 * expected[j].abs().max().item<double>()) << j;
    }
  }
}

/// The selection is frozen, and all documents but one change: that one stays, to the bit where the
/// backward of flash attention adds up in an order of its own.
TEST(Documents, DoNotDependOnOneAnother) {
  const Inputs x(4096, 4, 2), y(4096, 4, 2);
  Config config;
  config.budget = 128;
  config.local = 512;
  const Tensor starts = starts_at({0, 1000, 1001, 3000, 4096});
  const Tensor grad_out = at::randn({1, 4096, 4, 128}, x.q.options()).transpose(1, 2);
  const Tensor other_grad = at::randn({1, 4096, 4, 128}, x.q.options()).transpose(1, 2);
  const Selection selection = select(x.q, x.k, x.v, config, {}, starts);
  const auto own = [](const Tensor& t) { return t.slice(2, 1001, 3000); };
  for (const auto& [to, from] : {std::pair(y.q, x.q), std::pair(y.k, x.k), std::pair(y.v, x.v),
                                 std::pair(other_grad, grad_out)}) {
    own(to).copy_(own(from));
  }
  // Where it would only warn, PyTorch's flash attention stays as it is.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  for (const Attention& attend : all_inside(config, selection, starts)) {
    const std::vector<Tensor> before = attended(x, grad_out, at::kBFloat16, attend);
    const std::vector<Tensor> after = attended(y, other_grad, at::kBFloat16, attend);
    for (size_t j = 0; j < 4; ++j) EXPECT_TRUE(own(after[j]).equal(own(before[j]))) << j;
    EXPECT_FALSE(after[3].equal(before[3])) << "the test must be able to see a change";
  }
  at::globalContext().setDeterministicAlgorithms(false, false);
}

#ifdef NDEBUG  // else they are asserted
/// Nobody looks at starts on a GPU: what is out of range or out of order is moved.
TEST(Documents, WrongStartsAreMoved) {
  const Inputs x(1000, 2, 2);
  Config config;
  config.budget = config.tile_budget = 16;
  config.local = 128;
  const at::NoGradGuard no_grad;
  const auto with = [&](std::vector<int32_t> starts) {
    return attention(x.q, x.k, x.v, config, {}, starts_at(std::move(starts)));
  };
  EXPECT_TRUE(with({7, 300, -5, 2000}).equal(with({0, 300, 1000, 1000})));
}
#endif

TEST(Documents, AreAtMostWhatAGridHas) {
  const Inputs x(4096, 8, 8);
  Config config;
  config.budget = config.tile_budget = 16;
  config.local = 128;
  const Tensor starts = at::zeros({1, 8192}, x.q.options().dtype(at::kInt)).fill_(4096);
  starts.select(1, 0).zero_();
  EXPECT_THROW(attention(x.q, x.k, x.v, config, {}, starts), c10::ValueError);
}

/// Where documents start may change from replay to replay.
TEST(Documents, ATrainingStepIsCapturedAndReplayed) {
  const Inputs x(16384, 4, 2);
  x.need_gradients();
  const Tensor grad_out = at::randn({1, 16384, 4, 128}, x.q.options()).transpose(1, 2);
  const Tensor starts = starts_at({0, 5000, 16384, 16384});
  Config config;
  config.budget = 256;
  config.local = 1024;
  const auto step = [&] {
    const Tensor out = attention(x.q, x.k, x.v, config, {}, starts);
    std::vector<Tensor> results = torch::autograd::grad({out}, x.all(), {grad_out});
    results.push_back(out.detach());
    return results;
  };
  const auto move_to = [&](const std::vector<int32_t>& next) {
    return [&, next] { starts.copy_(starts_at(next)); };
  };
  expect_replays(step, {move_to({0, 16384, 16384, 16384}), move_to({0, 1, 2, 16383}),
                        move_to({0, 4000, 8000, 12000})});
}

TEST(Determinism, OfAllButTheInnerAttention) {
  const Inputs x(98304, 8, 8);
  const std::vector<int64_t> geometry = ops::geometry_list(98304, {});
  const Tensor grad_out = at::randn({1, 98304, 8, 128}, x.q.options()).transpose(1, 2);
  const auto run = [&] {
    const auto [scores_q, scores_k, roots] = ops::score(x.q, x.k, x.v, geometry);
    const auto [rows, slots] = ops::select(scores_q, scores_k, "published", geometry);
    const auto [gathered_q, gathered_k, gathered_v] =
        ops::gather(x.q, x.k, x.v, roots, rows, slots, geometry);
    const auto [grad_q, grad_k, grad_v] =
        ops::gather_backward(gathered_q, gathered_k, gathered_v, slots, false, geometry);
    return std::vector<Tensor>{scores_q,
                               scores_k,
                               roots,
                               rows,
                               slots,
                               gathered_q,
                               gathered_k,
                               gathered_v,
                               grad_q,
                               grad_k,
                               grad_v,
                               ops::scatter(gathered_q, rows, slots, geometry),
                               ops::scatter_backward(grad_out, rows, geometry)};
  };
  const std::vector<Tensor> expected = run();
  for (int i = 0; i < 20; ++i) {
    const std::vector<Tensor> actual = run();
    for (size_t j = 0; j < actual.size(); ++j) EXPECT_TRUE(actual[j].equal(expected[j])) << j;
  }
}

class Large : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(LocalTokens, Large, ::testing::Values(0, 4096));

/// 17 heads of 2^20 tokens: q has more than 2^31 elements. A head by itself, with the same
/// selection, must give the same, without pieces and with them.
TEST_P(Large, MoreThan2To31Elements) {
  constexpr int64_t kTokens = 1 << 20;
  constexpr int64_t kHeads = 17;
  Inputs x(kTokens, kHeads, 1);
  ASSERT_GT(x.q.numel(), int64_t{1} << 31);
  Config config;
  config.levels = 4;
  config.budget = 4096;
  config.local = GetParam();
  config.local_shift = config.local / 2;
  EXPECT_EQ(gathered_rows(kTokens, config), 65536);
  x.need_gradients();
  const Selection selection = select(x.q, x.k, x.v, config);
  const Tensor out = attention(x.q, x.k, x.v, config);
  const Tensor grad_out = at::randn_like(out);
  const auto grads = torch::autograd::grad({out}, {x.q}, {grad_out});
  // PyTorch may sum a head by itself in another order. Each value that is rounded to bfloat16 may
  // then be its neighbour, 2^-7 of it away: with pieces, the gradients of both branches and their
  // sum.
  const double tolerance = (config.local > 0 ? 3 : 1) * 0x1p-7;
  for (const int64_t head : {int64_t{0}, kHeads - 1}) {
    const auto only = [&](const Tensor& tensor) { return tensor.detach().narrow(1, head, 1); };
    const Tensor q = only(x.q).contiguous().requires_grad_();
    const Tensor alone = attention(q, x.k.detach(), x.v.detach(), config, selection);
    const Tensor grad = torch::autograd::grad({alone}, {q}, {only(grad_out)})[0];
    for (const auto& [actual, expected] :
         {std::pair(only(out), alone.detach()), std::pair(only(grads[0]), grad)}) {
      const double error =
          (actual.to(at::kFloat) - expected.to(at::kFloat)).abs().max().item<double>();
      EXPECT_LE(error, tolerance * expected.abs().max().item<double>()) << head;
    }
  }
}

/// Several hundred heads: each as it is alone.
TEST(ManyHeads, AreEachAsTheyAreAlone) {
  constexpr int64_t kHeads = 400;
  const Inputs x(2048, kHeads, kHeads);
  Config config;
  config.budget = config.tile_budget = 16;
  const Tensor out = attention(x.q, x.k, x.v, config);
  for (const int64_t head : {int64_t{0}, kHeads / 2, kHeads - 1}) {
    const auto only = [&](const Tensor& tensor) { return tensor.narrow(1, head, 1); };
    const Tensor alone = attention(only(x.q), only(x.k), only(x.v), config);
    const double error =
        (only(out).to(at::kFloat) - alone.to(at::kFloat)).abs().max().item<double>();
    EXPECT_LE(error, 0x1p-7 * alone.abs().max().item<double>()) << head;
  }
}

/// The whole operator on two streams at once.
TEST(Streams, TwoDoNotDisturbEachOther) {
  Config config;
  config.budget = config.tile_budget = 2048;  // one tile, which does not fit into shared memory
  struct Job {
    Inputs x{65536, 4, 4};
    Tensor expected;
    c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
    std::vector<Tensor> results;
  };
  std::vector<Job> jobs(2);
  const at::NoGradGuard no_grad;
  for (Job& job : jobs) job.expected = attention(job.x.q, job.x.k, job.x.v, config);
  c10::cuda::device_synchronize();
  for (int i = 0; i < 10; ++i)
    for (Job& job : jobs) {
      const c10::cuda::CUDAStreamGuard guard(job.stream);
      job.results.push_back(attention(job.x.q, job.x.k, job.x.v, config));
    }
  c10::cuda::device_synchronize();
  for (const Job& job : jobs)
    for (const Tensor& result : job.results) EXPECT_TRUE(result.equal(job.expected));
}

/// Tensors of a card that is not the current one.
TEST(Devices, TheTensorsDeviceIsTaken) {
  if (c10::cuda::device_count() < 2) GTEST_SKIP() << "needs two GPUs";
  Config config;
  config.budget = config.tile_budget = 64;
  const Inputs first(4096, 2, 2);
  const auto on_second = [](const Tensor& tensor) { return tensor.to(at::Device(at::kCUDA, 1)); };
  const Tensor out = attention(on_second(first.q), on_second(first.k), on_second(first.v), config);
  EXPECT_EQ(out.device().index(), 1);
  EXPECT_TRUE(out.to(first.q.device()).equal(attention(first.q, first.k, first.v, config)));
  EXPECT_EQ(c10::cuda::current_device(), 0);
}

/// Of the whole operator: the inner attention's deterministic kernel is taken where PyTorch is told
/// to be deterministic.
TEST(Deterministic, AlgorithmsIncludeTheInnerBackward) {
  struct Deterministic {
    Deterministic() { at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false); }
    ~Deterministic() { at::globalContext().setDeterministicAlgorithms(false, false); }
  } const deterministic;
  const Inputs x(32768, 8, 8);
  x.need_gradients();
  Config config;
  config.budget = 512;
  const Tensor grad_out = at::randn({1, 32768, 8, 128}, x.q.options()).transpose(1, 2);
  const auto run = [&] {
    return torch::autograd::grad({attention(x.q, x.k, x.v, config)}, x.all(), {grad_out});
  };
  const auto expected = run();
  for (int i = 0; i < 20; ++i) {
    const auto actual = run();
    for (size_t j = 0; j < 3; ++j) EXPECT_TRUE(actual[j].equal(expected[j])) << j;
  }
}

}  // namespace
}  // namespace lighthouse::testing
