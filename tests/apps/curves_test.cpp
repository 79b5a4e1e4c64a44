#include "apps/lighthouse/curves.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace lighthouse::app {
namespace {

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// Steps of two stages, and an evaluation before and after each, falling from 6 to 2.
RunMetrics run_of(int64_t steps) {
  RunMetrics run{"a run", {}};
  for (int64_t step = 0; step <= steps; ++step) {
    const bool first = step <= steps / 2;
    const double loss = step == 0 ? 6 : 2 + 1.0 / static_cast<double>(step);
    const std::string stage = first ? "one" : "two";
    if (step > 0) {
      run.history.steps.push_back({step, stage, "dense", loss, 1e-3, 1, 64 * step,
                                   0.5 * static_cast<double>(step), 128, 1 << 30});
    }
    if (step == 0 || step == steps / 2 || step == steps) {
      run.history.evals.push_back(
          {step, stage, "after", loss, loss, 64 * step, 0.5 * static_cast<double>(step)});
    }
  }
  return run;
}

/// The numbers of points of the picture's longest line.
int64_t longest_line(const std::string& picture) {
  int64_t most = 0;
  const std::string begin = "points=\"";
  for (size_t at = picture.find(begin); at != std::string::npos; at = picture.find(begin, at + 1)) {
    const size_t from = at + begin.size();
    const auto end = picture.begin() + static_cast<std::ptrdiff_t>(picture.find('"', from));
    most =
        std::max(most, std::count(picture.begin() + static_cast<std::ptrdiff_t>(from), end, ','));
  }
  return most;
}

TEST(Curves, HaveAPointForEachStepWhereThatIsReadable) {
  EXPECT_EQ(longest_line(picture_of({run_of(100)})), 100);
  const int64_t thinned = longest_line(picture_of({run_of(100001)}));
  EXPECT_GT(thinned, 300);
  EXPECT_LE(thinned, 401);  // the two stages' last points are means of fewer
}

TEST(Curves, MarkWhereAStageEnds) {
  for (const int64_t steps : {10, 5000}) {
    EXPECT_EQ(count(picture_of({run_of(steps)}), "stroke-dasharray"), 4) << steps;  // panels
  }
}

TEST(Curves, LeaveTheFallFromAnUntrainedModelOut) {
  const std::string picture = picture_of({run_of(100)});
  EXPECT_EQ(count(picture, ">2.05<"), 2);  // a tick of both panels of losses
  for (const char* tick : {">3<", ">4<", ">6<"}) EXPECT_EQ(count(picture, tick), 0) << tick;
}

}  // namespace
}  // namespace lighthouse::app
