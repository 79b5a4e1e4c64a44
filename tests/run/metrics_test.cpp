#include "lighthouse/run/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/run/support.h"

namespace lighthouse::run {
namespace {

StepMetrics step(int64_t number) {
  return {number, "first", "dense", 1.0 / 3, 1e-3, 0.5, 64 * number, 0.25, 256, 4096};
}

EvalMetrics eval(int64_t number, const char* when) {
  return {number, "first", when, 2.0 / 3, 0.75, 64 * number, 0.5};
}

TEST(Metrics, AreWhatWasWritten) {
  const Folder folder;
  MetricsFile file(folder / "metrics.jsonl", 0);
  file.write(eval(0, "before"));
  file.write(step(1));
  EXPECT_EQ(
      io::read_file(folder / "metrics.jsonl"),
      R"({"kind":"eval","step":0,"stage":"first","when":"before","dense_loss":0.6666666666666666,)"
      R"("trained_loss":0.75,"tokens":0,"seconds":0.5})"
      "\n"
      R"({"kind":"step","step":1,"stage":"first","attention":"dense","loss":0.3333333333333333,)"
      R"("lr":0.001,"grad_norm":0.5,"tokens":64,"seconds":0.25,"tokens_per_second":256.0,)"
      R"("memory_bytes":4096})"
      "\n");
  const MetricsHistory history = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(history.steps.size(), 1u);
  ASSERT_EQ(history.evals.size(), 1u);
  EXPECT_EQ(history.steps[0].loss, 1.0 / 3);
  EXPECT_EQ(history.evals[0].when, "before");
}

TEST(Metrics, KeepALossThatIsNotANumber) {
  const Folder folder;
  EvalMetrics diverged = eval(1, "after");
  diverged.dense_loss = std::nan("");
  MetricsFile(folder / "metrics.jsonl", 0).write(diverged);
  const MetricsHistory history = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(history.evals.size(), 1u);
  EXPECT_TRUE(std::isnan(history.evals[0].dense_loss));
  EXPECT_EQ(history.evals[0].trained_loss, 0.75);
}

TEST(Metrics, AreCutWhereARunGoesOn) {
  const Folder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    file.write(eval(0, "before"));
    file.write(step(1));
    file.write(step(2));
    file.write(eval(2, "during"));
    file.write(step(3));
  }
  std::ofstream(path, std::ios::app) << R"({"kind":"st)";
  EXPECT_EQ(read_metrics(path).steps.size(), 3u);

  MetricsFile(path, 2).write(step(7));
  const MetricsHistory history = read_metrics(path);
  ASSERT_EQ(history.steps.size(), 3u);
  EXPECT_EQ(history.steps[1].step, 2);
  EXPECT_EQ(history.steps[2].step, 7);
  ASSERT_EQ(history.evals.size(), 1u);
  EXPECT_EQ(history.evals[0].step, 0);

  MetricsFile(path, 0).sync();
  EXPECT_EQ(io::read_file(path), "");
}

TEST(Metrics, NameALineThatIsNone) {
  const Folder folder;
  std::ofstream(folder / "metrics.jsonl") << "{\"kind\":\"step\"}\n";
  EXPECT_TRUE(testing::throws<std::runtime_error>([&] { read_metrics(folder / "metrics.jsonl"); },
                                                  {"metrics.jsonl', line 1"}));
}

}  // namespace
}  // namespace lighthouse::run
