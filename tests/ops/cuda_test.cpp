#include <ATen/TensorOperators.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

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

TEST(Graph, ATrainingStepIsCapturedAndReplayed) {
  const Inputs x(16384, 4, 2);
  x.need_gradients();
  const Tensor grad_out = at::randn({1, 16384, 4, 128}, x.q.options()).transpose(1, 2);
  Config config;
  config.budget = 256;
  const auto step = [&] {
    const Tensor out = attention(x.q, x.k, x.v, config);
    std::vector<Tensor> results = torch::autograd::grad({out}, x.all(), {grad_out});
    results.push_back(out.detach());
    return results;
  };
  const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  stream.synchronize();
  step();
  step();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const std::vector<Tensor> captured = step();
  graph.capture_end();
  for (int i = 0; i < 3; ++i) {
    {
      const at::NoGradGuard no_grad;
      for (const Tensor& tensor : x.all()) tensor.normal_();
    }
    graph.replay();
    const std::vector<Tensor> eager = step();
    // The output to the bit; gradients to what the inner backward's order of sums leaves open.
    EXPECT_TRUE(captured.back().equal(eager.back()));
    for (size_t j = 0; j < 3; ++j) {
      const double error =
          (captured[j].to(at::kFloat) - eager[j].to(at::kFloat)).abs().max().item<double>();
      const double largest = eager[j].abs().max().item<double>();
      EXPECT_LE(error, 0x1p-7 * largest) << j;
    }
  }
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

/// 17 heads of 2^20 tokens: q has more than 2^31 elements. A head by itself, with the same
/// selection, must give the same.
TEST(Large, MoreThan2To31Elements) {
  constexpr int64_t kTokens = 1 << 20;
  constexpr int64_t kHeads = 17;
  Inputs x(kTokens, kHeads, 1);
  ASSERT_GT(x.q.numel(), int64_t{1} << 31);
  Config config;
  config.levels = 4;
  config.budget = 4096;
  EXPECT_EQ(gathered_rows(kTokens, config), 65536);
  x.need_gradients();
  const Selection selection = select(x.q, x.k, x.v, config);
  const Tensor out = attention(x.q, x.k, x.v, config);
  const Tensor grad_out = at::randn_like(out);
  const auto grads = torch::autograd::grad({out}, {x.q}, {grad_out});
  for (const int64_t head : {int64_t{0}, kHeads - 1}) {
    const auto only = [&](const Tensor& tensor) { return tensor.detach().narrow(1, head, 1); };
    const Tensor q = only(x.q).contiguous().requires_grad_();
    const Tensor alone = attention(q, x.k.detach(), x.v.detach(), config, selection);
    const Tensor grad = torch::autograd::grad({alone}, {q}, {only(grad_out)})[0];
    for (const auto& [actual, expected] :
         {std::pair(only(out), alone.detach()), std::pair(only(grads[0]), grad)}) {
      const double error =
          (actual.to(at::kFloat) - expected.to(at::kFloat)).abs().max().item<double>();
      EXPECT_LE(error, 0x1p-7 * expected.abs().max().item<double>()) << head;
    }
  }
}

/// Of the whole operator: the inner attention's deterministic kernel is taken where PyTorch is told
/// to be deterministic.
TEST(Deterministic, AlgorithmsIncludeTheInnerBackward) {
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
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
  at::globalContext().setDeterministicAlgorithms(false, false);
}

}  // namespace
}  // namespace lighthouse::testing
