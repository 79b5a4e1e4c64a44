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

/// The same rows in the layout (1, H, length, D).
template <class T>
Rows<T> heads_major(T* data, int64_t length, int64_t heads, int64_t dim) {
  return {data, heads * length * dim, length * dim, dim};
}

/// Rows that thousands of positions hear, against the CPU.
TEST(MergeLarge, BackwardOfLongWindows) {
  const Geometry g = geometry_of({"", 40000, 5, 8, 32, 8});
  const Shape shape{1, 2, 1, 40};
  const Pieces pieces(g.tokens, 1000, 300);
  Random random(93);
  const auto values = [&](int64_t rows, int64_t dim) {
    return to_vector<float>(rounded<float>(normals(random, {1, shape.heads, rows, dim})));
  };
  const std::vector<float> grad = values(g.tokens, shape.dim), out = values(g.tokens, shape.dim);
  const std::vector<float> lse = values(g.tokens, 1), gathered_lse = values(g.rows, 1);
  std::vector<int32_t> rows(g.rows);
  std::vector<Slot> slots(g.coarse_entries());
  const std::vector<float> scores(slots.size());
  cpu::select({g, shape, SelectionRule::kPublished, scores.data(), scores.data(), rows.data(),
               slots.data()},
              0, g.tiles);
  const auto args = [&](const float* grad_data, const float* out_data, const float* lse_data,
                        const float* gathered_lse_data, const int32_t* row_ids,
                        const Slot* slot_data, float* grad_gathered, float* backward_out) {
    return MergeBackward<float>{
        .geometry = g,
        .shape = shape,
        .pieces = pieces,
        .grad_out = heads_major(grad_data, g.tokens, shape.heads, shape.dim),
        .out = heads_major(out_data, g.tokens, shape.heads, shape.dim),
        .lse = lse_data,
        .gathered_lse = heads_major(gathered_lse_data, g.rows, shape.heads, 1),
        .rows = row_ids,
        .slots = slot_data,
        .grad_gathered_out = heads_major(grad_gathered, g.rows, shape.heads, shape.dim),
        .backward_out = heads_major(backward_out, g.rows, shape.heads, shape.dim)};
  };
  std::vector<float> expected(shape.heads * g.rows * shape.dim), expected_out(expected.size());
  cpu::merge_backward(args(grad.data(), out.data(), lse.data(), gathered_lse.data(), rows.data(),
                           slots.data(), expected.data(), expected_out.data()),
                      0, g.rows);
  const Buffer<float> device_grad(grad), device_out(out), device_lse(lse),
      device_gathered_lse(gathered_lse), actual(expected.size(), NAN),
      actual_out(expected.size(), NAN);
  const Buffer<int32_t> device_rows(rows);
  const Buffer<Slot> device_slots(slots);
  run(random,
      args(device_grad.data(), device_out.data(), device_lse.data(), device_gathered_lse.data(),
           device_rows.data(), device_slots.data(), actual.data(), actual_out.data()));
  const std::vector<int64_t> of_rows{1, shape.heads, g.rows, shape.dim};
  // Both round some thousand sums of normals in float32, of which the row sums may nearly cancel.
  EXPECT_TRUE(close(to_array(actual.values(), of_rows), to_array(expected, of_rows), 1e-5));
  EXPECT_TRUE(close(to_array(actual_out.values(), of_rows), to_array(expected_out, of_rows), 1e-3));
}

/// 17 heads of 2^20 tokens, all with the same rows: more than 2^31 elements, in place. Every head
/// must be as the first, and the first as it is alone.
TEST(MergeLarge, MoreThan2To31Elements) {
  constexpr int64_t kHeads = 17;
  const Geometry g = geometry_of({"", 1 << 20, 4, 4, 4096, 128});
  const Shape shape{1, kHeads, kHeads, 128};
  const int64_t head_size = g.tokens * shape.dim;
  ASSERT_GT(kHeads * head_size, int64_t{1} << 31);
  Random random(94);
  // Random bits of finite bfloat16 numbers: normals for so many would take minutes.
  const auto numbers = [&](int64_t count) {
    std::vector<BFloat16> result(count);
    for (BFloat16& x : result) x.bits = static_cast<uint16_t>(random() % 0x4000 + 0x3000);
    return result;
  };
  // One head's values, for every head.
  const auto repeated = [](const auto& of_head) {
    using Value = typename std::decay_t<decltype(of_head)>::value_type;
    std::vector<Value> all;
    all.reserve(kHeads * of_head.size());
    for (int64_t h = 0; h < kHeads; ++h) all.insert(all.end(), of_head.begin(), of_head.end());
    return all;
  };
  const std::vector<BFloat16> near = numbers(head_size), far = numbers(g.rows * shape.dim);
  const std::vector<float> near_lse(g.tokens, 0.25f), far_lse(g.rows, 0.5f);
  const std::vector<float> scores(g.coarse_entries());
  std::vector<int32_t> rows(g.rows);
  std::vector<Slot> slots(g.coarse_entries());
  cpu::select({g,
               {1, 1, 1, 1},
               SelectionRule::kPublished,
               scores.data(),
               scores.data(),
               rows.data(),
               slots.data()},
              0, g.tiles);

  const auto merged = [&](int64_t heads, const Buffer<BFloat16>& out, const Buffer<float>& lse,
                          const Buffer<BFloat16>& gathered, const Buffer<float>& gathered_lse,
                          const Buffer<Slot>& all_slots) {
    const Pieces pieces(g.tokens, g.tokens, 0);
    PieceRows<const BFloat16> near_out;
    near_out.segment[Pieces::kWhole] =
        heads_major<const BFloat16>(out.data(), g.tokens, heads, shape.dim);
    PieceRows<const float> near_lse_rows;
    near_lse_rows.segment[Pieces::kWhole] =
        heads_major<const float>(lse.data(), g.tokens, heads, 1);
    cuda::merge(
        lighthouse::Merge<BFloat16>{
            .geometry = g,
            .shape = {1, heads, heads, shape.dim},
            .pieces = pieces,
            .near_out = near_out,
            .near_lse = near_lse_rows,
            .gathered_out = heads_major<const BFloat16>(gathered.data(), g.rows, heads, shape.dim),
            .gathered_lse = heads_major<const float>(gathered_lse.data(), g.rows, heads, 1),
            .slots = all_slots.data(),
            .out = heads_major(out.data(), g.tokens, heads, shape.dim),
            .lse = lse.data()},
        nullptr);
    return out.values();
  };
  const auto bits_equal = [](const BFloat16* a, const BFloat16* b, int64_t count) {
    return std::equal(a, a + count, b, [](BFloat16 x, BFloat16 y) { return x.bits == y.bits; });
  };
  const std::vector<BFloat16> alone =
      merged(1, Buffer<BFloat16>(near), Buffer<float>(near_lse), Buffer<BFloat16>(far),
             Buffer<float>(far_lse), Buffer<Slot>(slots));
  EXPECT_FALSE(bits_equal(alone.data(), near.data(), head_size));
  const std::vector<BFloat16> all =
      merged(kHeads, Buffer<BFloat16>(repeated(near)), Buffer<float>(repeated(near_lse)),
             Buffer<BFloat16>(repeated(far)), Buffer<float>(repeated(far_lse)),
             Buffer<Slot>(repeated(slots)));
  for (int64_t h = 0; h < kHeads; ++h) {
    EXPECT_TRUE(bits_equal(alone.data(), all.data() + h * head_size, head_size)) << "head " << h;
  }
}

}  // namespace
}  // namespace lighthouse::testing
