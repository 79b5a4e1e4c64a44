#include <ostream>

#include "tests/kernels/support.h"

/// The CUDA kernels at sizes that the oracle is too slow for, against those of the CPU, which agree
/// with it.
namespace lighthouse::testing {
namespace {

struct Problem {
  const char* what;
  int64_t tokens, levels, pooling, budget, tile_budget;
  int64_t heads = 1;
};
std::ostream& operator<<(std::ostream& out, const Problem& p) { return out << p.what; }

Geometry geometry_of(const Problem& p) {
  Config config;
  config.levels = p.levels;
  config.pooling_factor = p.pooling;
  config.budget = p.budget;
  config.tile_budget = p.tile_budget;
  return {p.tokens, config};
}

class SelectLarge : public ::testing::TestWithParam<Problem> {};
INSTANTIATE_TEST_SUITE_P(
    Problems, SelectLarge,
    ::testing::Values(Problem{"the paper's", 98304, 3, 4, 1536, 128, 8},
                      Problem{"more than 65536 rows", 524288, 3, 4, 6144, 128, 2},
                      Problem{"one tile", 98304, 3, 4, 1536, 1536, 2},
                      Problem{"one tile of 32768 roots", 524288, 3, 4, 2048, 2048, 1},
                      Problem{"an odd tile budget", 30011, 3, 4, 441, 63, 3},
                      Problem{"tiles with exactly m candidates", 8192, 3, 4, 512, 128, 2},
                      Problem{"one candidate more", 8208, 3, 4, 512, 128, 2},
                      Problem{"two levels", 40000, 2, 8, 1024, 128, 2},
                      Problem{"five levels", 200001, 5, 2, 1024, 128, 2},
                      Problem{"several hundred heads", 2048, 3, 4, 64, 16, 400}));

/// Kinds of scores: any; few values, so ties; all equal; some of them NaN or infinite.
std::vector<float> scores_of_kind(Random& random, size_t count, int kind) {
  std::normal_distribution<float> normal;
  std::vector<float> scores(count);
  for (float& score : scores) {
    score = normal(random);
    if (kind == 1) score = std::round(score);
    if (kind == 2) score = 1;
    if (kind == 3 && draw(random, 0, 3) == 0) {
      constexpr float kOdd[] = {NAN, INFINITY, -INFINITY, -0.0f};
      score = kOdd[draw(random, 0, 3)];
    }
  }
  return scores;
}

TEST_P(SelectLarge, IsThatOfTheCpuIndexForIndex) {
  const Problem& p = GetParam();
  const Geometry g = geometry_of(p);
  const Shape shape{1, p.heads, p.heads, 1};
  Random random(90);
  for (int kind = 0; kind < 4; ++kind)
    for (const SelectionRule rule : {SelectionRule::kPublished, SelectionRule::kCausal}) {
      const auto scores_q = scores_of_kind(random, p.heads * g.coarse_entries(), kind);
      const auto scores_k = scores_of_kind(random, p.heads * g.coarse_entries(), kind);
      std::vector<int32_t> rows(p.heads * g.rows);
      std::vector<Slot> slots(scores_q.size());
      cpu::select({g, shape, rule, scores_q.data(), scores_k.data(), rows.data(), slots.data()}, 0,
                  p.heads * g.tiles);
      const Buffer<float> device_q(scores_q), device_k(scores_k);
      const Buffer<int32_t> device_rows(rows.size(), -77);
      const Buffer<Slot> device_slots(slots.size(), 77);
      run(random, Select{g, shape, rule, device_q.data(), device_k.data(), device_rows.data(),
                         device_slots.data()});
      EXPECT_EQ(device_rows.values(), rows) << "scores of kind " << kind;
      EXPECT_EQ(device_slots.values(), slots) << "scores of kind " << kind;
    }
}

/// Two streams, each with its own workspace, do not disturb each other.
TEST(SelectStreams, TwoAtOnce) {
  const Geometry g = geometry_of({"", 98304, 3, 4, 1536, 1536});
  const Shape shape{1, 8, 8, 1};
  ASSERT_GT(cuda::select_workspace_bytes(g, shape), 0);
  Random random(91);
  struct Job {
    std::vector<float> scores;
    Buffer<float> device_scores;
    Buffer<int32_t> rows;
    Buffer<Slot> slots;
    Buffer<uint8_t> workspace;
    cudaStream_t stream;
  };
  std::vector<Job> jobs(2);
  for (Job& job : jobs) {
    job.scores = scores_of_kind(random, 8 * g.coarse_entries(), 0);
    job.device_scores = Buffer<float>(job.scores);
    job.rows = Buffer<int32_t>(8 * g.rows, -77);
    job.slots = Buffer<Slot>(job.scores.size(), 77);
    job.workspace = Buffer<uint8_t>(cuda::select_workspace_bytes(g, shape), 0x5a);
    check_cuda(cudaStreamCreateWithFlags(&job.stream, cudaStreamNonBlocking));
  }
  check_cuda(cudaDeviceSynchronize());
  for (int i = 0; i < 20; ++i)
    for (Job& job : jobs) {
      const float* scores = job.device_scores.data();
      cuda::select(
          {g, shape, SelectionRule::kPublished, scores, scores, job.rows.data(), job.slots.data()},
          job.workspace.data(), job.stream);
    }
  for (Job& job : jobs) {
    std::vector<int32_t> rows(8 * g.rows);
    std::vector<Slot> slots(job.scores.size());
    cpu::select({g, shape, SelectionRule::kPublished, job.scores.data(), job.scores.data(),
                 rows.data(), slots.data()},
                0, 8 * g.tiles);
    EXPECT_EQ(job.rows.values(), rows);
    EXPECT_EQ(job.slots.values(), slots);
    check_cuda(cudaStreamDestroy(job.stream));
  }
}

/// Windows that whole blocks sum together: against the CPU, whose order of sums is another.
TEST(ScatterLarge, BackwardOfLongWindows) {
  const Geometry g = geometry_of({"", 40000, 5, 8, 32, 8});
  ASSERT_GT(g.root_window(), 4000);
  const Shape shape{1, 2, 1, 40};
  Random random(92);
  const Array grad = rounded<float>(normals(random, {1, 2, g.tokens, shape.dim}));
  const std::vector<float> values = to_vector<float>(grad);
  std::vector<int32_t> rows(g.rows);
  for (int32_t& row : rows) row = static_cast<int32_t>(draw(random, 0, g.first[g.levels] - 1));
  const auto view = [&](auto* data, int64_t length) {
    return Rows<std::remove_pointer_t<decltype(data)>>{data, 2 * length * shape.dim,
                                                       length * shape.dim, shape.dim};
  };
  std::vector<float> expected(2 * g.rows * shape.dim);
  cpu::scatter_backward(ScatterBackward<float>{g, shape, view(values.data(), g.tokens), rows.data(),
                                               view(expected.data(), g.rows)},
                        0, g.rows);
  const Buffer<float> device_grad(values), device_out(expected.size(), NAN);
  const Buffer<int32_t> device_rows(rows);
  const float* from = device_grad.data();
  run(random, ScatterBackward<float>{g, shape, view(from, g.tokens), device_rows.data(),
                                     view(device_out.data(), g.rows)});
  const std::vector<int64_t> out_shape{1, 2, g.rows, shape.dim};
  // Both round some thousand sums of standard normals in float32.
  EXPECT_TRUE(close(to_array(device_out.values(), out_shape), to_array(expected, out_shape), 1e-5));
}

}  // namespace
}  // namespace lighthouse::testing
