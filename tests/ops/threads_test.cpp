#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <string>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"

namespace lighthouse::testing {
namespace {

/// Stock attention on the CPU is made of MKL's matrix products. Only in this mode do these give the
/// same bits for any alignment and number of threads, on every processor. MKL reads it at the first
/// product of the program.
const bool kSameBitsOfMkl = ::setenv("MKL_CBWR", "COMPATIBLE", /*overwrite=*/1) == 0;

/// The threads that have been in a parallel region since the last call of `watched`.
struct Watch {
  std::mutex mutex;
  std::set<pid_t> threads;
};
Watch& watch() {
  static Watch instance;
  return instance;
}

/// One parallel region's function, and what it is called with.
struct Region {
  void (*function)(void*);
  void* data;
};

void run_watched(void* region_pointer) {
  const auto* region = static_cast<const Region*>(region_pointer);
  {
    const std::lock_guard lock(watch().mutex);
    watch().threads.insert(::gettid());
  }
  region->function(region->data);
}

}  // namespace
}  // namespace lighthouse::testing

/// Stands before libgomp's function of that name, which every parallel region calls, in whichever
/// library it was compiled.
extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads,
                              unsigned flags) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto real = reinterpret_cast<Parallel>(::dlsym(RTLD_NEXT, "GOMP_parallel"));
  lighthouse::testing::Region region{function, data};
  real(lighthouse::testing::run_watched, &region, threads, flags);
}

namespace lighthouse::testing {
namespace {

using at::Tensor;

/// The threads that work on `f`.
template <class F>
std::set<pid_t> threads_of(const F& f) {
  watch().threads.clear();
  f();
  return watch().threads;
}

/// Large enough for every stage to be worth several threads.
struct Large {
  Config config;
  Tensors x;

  Large(at::ScalarType type, int64_t tokens) {
    config.levels = 3;
    config.pooling_factor = 4;
    config.tile_budget = 16;
    config.budget = tokens / 32;
    const auto normal = [&](int64_t heads) {
      return at::randn({2, tokens, heads, 32}, at::kFloat).to(device(), type).transpose(1, 2);
    };
    x = {normal(4), normal(2), normal(2)};
  }

  std::vector<Tensor> run() const {
    const Tensors leaf = leaves(x);
    const Selection selection = select(leaf.q, leaf.k, leaf.v, config);
    const Tensor out = attention(leaf.q, leaf.k, leaf.v, config);
    out.square().sum().backward();
    return {selection.rows, selection.slots, out.detach(),
            leaf.q.grad(),  leaf.k.grad(),   leaf.v.grad()};
  }
};

class Determinism : public ::testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(AllTypes, Determinism,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

void expect_same_bits(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(actual[i].equal(expected[i])) << i;
}

TEST_P(Determinism, FromRunToRunAndForAnyNumberOfThreads) {
  ASSERT_TRUE(kSameBitsOfMkl);
  for (const Scorer scorer : {Scorer::kNorm, Scorer::kDilated, Scorer::kGla}) {
    // Of more tokens the select stage too is worth several threads; it knows no type.
    Large large(GetParam(), scorer == Scorer::kNorm && GetParam() == at::kFloat ? 4096 : 1024);
    large.config.scorer = scorer;
    if (scorer == Scorer::kGla) large.config.local = 200;  // and the pieces beside
    std::vector<Tensor> expected;
    {
      const Threads one(1);
      expected = large.run();
      expect_same_bits(large.run(), expected);
    }
    for (const int count : {2, 3}) {
      const Threads several(count);
      expect_same_bits(large.run(), expected);
    }
  }
}

/// Every stage, forward and backward, uses as many threads as PyTorch has been given, and the very
/// threads that PyTorch itself uses.
TEST(ThreadPool, IsThatOfPyTorch) {
  if (!device().is_cpu()) GTEST_SKIP() << "of the CPU alone";
  const Large large(at::kFloat, 16384);
  const Tensor& q = large.x.q;
  const Tensor& k = large.x.k;
  const Tensor& v = large.x.v;
  const std::vector<int64_t> geometry = ops::geometry_list(q.size(2), large.config);
  Tensor scores_q, scores_k, roots, rows, slots, gathered_q, gathered_k, gathered_v;
  std::tie(scores_q, scores_k, roots) = ops::score(q, k, v, geometry);
  std::tie(rows, slots) = ops::select(scores_q, scores_k, "published", geometry);
  std::tie(gathered_q, gathered_k, gathered_v) = ops::gather(q, k, v, roots, rows, slots, geometry);
  const auto fewer = [](const Tensor& x) { return x.slice(2, 0, 2048); };
  const Tensor few_q = fewer(gathered_q), few_k = fewer(gathered_k), few_v = fewer(gathered_v);
  const Tensor tokens_q = at::randn({2, 4, 16384});
  const Tensor tokens_k = at::randn({2, 2, 16384});
  for (const int count : {1, 2, 3}) {
    const Threads threads(count);
    // Where there is one thread, PyTorch opens no parallel region.
    const std::set<pid_t> pool = threads_of([&] { dense_attention(few_q, few_k, few_v); });
    ASSERT_EQ(pool.size(), count == 1 ? 0U : static_cast<size_t>(count));
    EXPECT_EQ(threads_of([&] { ops::score(q, k, v, geometry); }), pool);
    EXPECT_EQ(threads_of([&] { ops::pool_scores(tokens_q, tokens_k, geometry); }), pool);
    EXPECT_EQ(threads_of([&] { ops::select(scores_q, scores_k, "published", geometry); }), pool);
    EXPECT_EQ(threads_of([&] { ops::gather(q, k, v, roots, rows, slots, geometry); }), pool);
    EXPECT_EQ(threads_of([&] {
                ops::gather_backward(gathered_q, gathered_k, gathered_v, slots, false, geometry);
              }),
              pool);
    EXPECT_EQ(threads_of([&] { ops::attend(few_q, few_k, few_v, true, {}); }), pool);
    EXPECT_EQ(threads_of([&] { ops::scatter(gathered_q, rows, slots, geometry); }), pool);
    EXPECT_EQ(threads_of([&] { ops::scatter_backward(q, rows, geometry); }), pool);
  }
}

TEST(ThreadPool, IsOneLibrary) {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> libraries;
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    const bool openmp = line.find("libgomp") != std::string::npos ||
                        line.find("libomp") != std::string::npos ||
                        line.find("libiomp") != std::string::npos;
    if (openmp && path != std::string::npos) libraries.insert(line.substr(path));
  }
  EXPECT_EQ(libraries.size(), 1U) << ::testing::PrintToString(libraries);
}

}  // namespace
}  // namespace lighthouse::testing
