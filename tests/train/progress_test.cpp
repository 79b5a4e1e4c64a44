#include "lighthouse/train/progress.h"

#include <gtest/gtest.h>

#include <sstream>

namespace lighthouse::train {
namespace {

StepMetrics step(int64_t number, int64_t tokens) {
  return {number, "first", "dense", 2.5, 1e-3, 0.5, tokens, 1, 100};
}

TEST(Progress, IsPlainLinesWhereThereIsNoTerminal) {
  std::ostringstream out;
  Progress progress(out, false, 200, 800000);
  progress.step(step(1, 4000), true);
  for (int64_t i = 2; i <= 20; ++i) progress.step(step(i, 4000 * i), false);
  progress.say("done");
  EXPECT_EQ(out.str(),
            "step 1/200  first (dense)  loss 2.5000  100 tokens/s  2:12:40 left\n"
            "step 10/200  first (dense)  loss 2.5000  100 tokens/s  2:06:40 left\n"
            "step 20/200  first (dense)  loss 2.5000  100 tokens/s  2:00:00 left\n"
            "done\n");
}

TEST(Progress, IsOneLineOnATerminal) {
  std::ostringstream out;
  {
    Progress progress(out, true, 4, 400);
    progress.step(step(1, 100), true);
    progress.step(step(2, 200), false);
    const std::string drawn = out.str();
    EXPECT_EQ(drawn.find('\n'), std::string::npos);
    EXPECT_NE(drawn.rfind("\r\033[K"), drawn.find("\r\033[K"));
    EXPECT_NE(drawn.find("step 2/4  first (dense)  loss 2.5000  100 tokens/s  0:02 left"),
              std::string::npos);
    progress.say("said");
    EXPECT_NE(out.str().find("\r\033[Ksaid\n"), std::string::npos);
    progress.step(step(3, 300), false);
  }
  EXPECT_EQ(out.str().back(), '\n');
}

}  // namespace
}  // namespace lighthouse::train
