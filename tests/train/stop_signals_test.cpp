#include "lighthouse/train/stop_signals.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <string>

namespace lighthouse::train {
namespace {

using Handler = void (*)(int);

/// What the process does with a signal, put back at the end.
class Disposition {
 public:
  Disposition(int signal, Handler handler)
      : signal_(signal), before_(std::signal(signal, handler)) {}
  ~Disposition() { std::signal(signal_, before_); }
  Disposition(const Disposition&) = delete;
  Disposition& operator=(const Disposition&) = delete;

 private:
  int signal_;
  Handler before_;
};

Handler handler_of(int signal) {
  struct sigaction action {};
  sigaction(signal, nullptr, &action);
  return action.sa_handler;
}

class StopSignalsTest : public ::testing::TestWithParam<int> {};

TEST_P(StopSignalsTest, KeepsTheFirst) {
  const Disposition standard(GetParam(), SIG_DFL);
  {
    const StopSignals signals;
    EXPECT_EQ(StopSignals::received(), 0);
    std::raise(GetParam());
    EXPECT_EQ(StopSignals::received(), GetParam());
    // A pipe whose reader has gone is written to again before the run has ended.
    EXPECT_EQ(handler_of(GetParam()) == SIG_DFL, GetParam() != SIGPIPE);
  }
  EXPECT_EQ(StopSignals::received(), GetParam());
  EXPECT_EQ(handler_of(GetParam()), SIG_DFL);
}

TEST_P(StopSignalsTest, LeavesAnIgnoredSignalIgnored) {
  const Disposition ignored(GetParam(), SIG_IGN);
  {
    const StopSignals signals;
    std::raise(GetParam());
    EXPECT_EQ(StopSignals::received(), 0);
  }
  EXPECT_EQ(handler_of(GetParam()), SIG_IGN);
}

INSTANTIATE_TEST_SUITE_P(Each, StopSignalsTest,
                         ::testing::Values(SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE),
                         [](const auto& test) {
                           return std::string("SIG") + sigabbrev_np(test.param);
                         });

}  // namespace
}  // namespace lighthouse::train
