#include "lighthouse/train/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace lighthouse::train {
namespace {

run::StepMetrics step(int64_t number, int64_t tokens) {
  return {
      number,          number > 100 ? "second" : "first", "dense", 2.5, 1e-3, 0.5, tokens, 1, 100,
      int64_t{3} << 29};
}

/// Stages of these numbers of steps, of 4000 tokens each.
std::vector<run::StageRecipe> stages(int64_t first, int64_t second) {
  std::vector<run::StageRecipe> both(2);
  both[0].name = "first";
  both[0].steps = first;
  both[1].name = "second";
  both[1].steps = second;
  for (run::StageRecipe& stage : both) stage.context = 4000;
  return both;
}

TEST(Progress, IsPlainLinesWhereThereIsNoTerminal) {
  std::ostringstream out;
  const auto both = stages(100, 100);
  Progress progress(out, false, both);
  progress.step(step(1, 4000), true);
  for (int64_t i = 2; i <= 20; ++i) progress.step(step(i, 4000 * i), false);
  progress.step(step(100, 400000), true);
  progress.step(step(101, 404000), true);
  progress.step(step(200, 800000), true);
  progress.say("done");
  EXPECT_EQ(out.str(),
            "step 1/200  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: first 1:06:00, "
            "second ?\n"
            "step 10/200  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: first 1:00:00, "
            "second ?\n"
            "step 20/200  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: first 53:20, "
            "second ?\n"
            "step 100/200  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: second ?\n"
            "step 101/200  second (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: second "
            "1:06:00\n"
            "step 200/200  second (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: second 0:00\n"
            "done\n");
}

/// What is left of a stage by seconds is known before it begins.
TEST(Progress, CountsSecondsWhereStagesAreBySeconds) {
  std::ostringstream out;
  auto both = stages(0, 0);
  both[0].seconds = 40;
  both[1].seconds = 80;
  Progress progress(out, false, both);
  const auto step_at = [&](int64_t number, double seconds) {
    run::StepMetrics metrics = step(number, 4000 * number);
    metrics.seconds = seconds;
    return metrics;
  };
  progress.step(step_at(1, 5), true);
  for (int64_t i = 2; i <= 20; ++i)
    progress.step(step_at(i, 5 + 0.1 * static_cast<double>(i)), false);
  progress.step(step_at(100, 41), true);
  progress.step(step_at(200, 121), true);
  EXPECT_EQ(out.str(),
            "step 1, second 5/120  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: first "
            "0:35, second 1:20\n"
            "step 10, second 6/120  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: first "
            "0:34, second 1:20\n"
            "step 100, second 41/120  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: "
            "second 1:19\n"
            "step 200, second 121/120  second (dense)  loss 2.5000  100 tokens/s  1.5 GiB  left: "
            "second 0:00\n");
}

/// About ten lines, or one that is redrawn.
TEST(Progress, TellsWhatIsDoneBeforeTheFirstStep) {
  std::ostringstream out, drawn;
  const auto both = stages(1, 1);
  Progress progress(out, false, both), terminal(drawn, true, both);
  for (uint64_t i = 1; i <= 40; ++i) {
    progress.prepare("reading", i * 100000000, 4000000000);
    terminal.prepare("reading", i * 100000000, 4000000000);
  }
  const std::string lines = out.str();
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 11);
  EXPECT_TRUE(lines.starts_with("reading: 0.1 of 4.0 GB\nreading: 0.4 of 4.0 GB\n")) << lines;
  EXPECT_EQ(drawn.str().find('\n'), std::string::npos);
  EXPECT_NE(drawn.str().find("\r\033[K\033[?7lreading: 4.0 of 4.0 GB"), std::string::npos);
}

/// Slow steps among fast ones take the time that they take.
TEST(Progress, SmoothsTheTimeOfAToken) {
  std::ostringstream out;
  const auto both = stages(2, 100);
  Progress progress(out, true, both);
  run::StepMetrics slow = step(2, 8000);
  slow.tokens_per_second = 10;
  progress.step(step(1, 4000), false);
  progress.step(slow, false);
  EXPECT_NE(out.str().find("  53 tokens/s"), std::string::npos)
      << out.str();  // 1 / (0.9 / 100 + 0.1 / 10)
}

TEST(Progress, IsOneLineOnATerminal) {
  std::ostringstream out;
  {
    const auto both = stages(4, 1);
    Progress progress(out, true, both);
    progress.step(step(1, 100), true);
    progress.step(step(2, 200), false);
    const std::string drawn = out.str();
    EXPECT_EQ(drawn.find('\n'), std::string::npos);
    EXPECT_NE(drawn.rfind("\r\033[K"), drawn.find("\r\033[K"));
    EXPECT_NE(drawn.find("step 2/5  first (dense)  loss 2.5000  100 tokens/s  1.5 GiB  "
                         "left: first 1:20, second ?"),
              std::string::npos);
    progress.say("said");
    EXPECT_NE(out.str().find("\r\033[Ksaid\n"), std::string::npos);
    progress.step(step(3, 300), false);
  }
  EXPECT_EQ(out.str().back(), '\n');
}

}  // namespace
}  // namespace lighthouse::train
