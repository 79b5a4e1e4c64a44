#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "lighthouse/train/metrics.h"

namespace lighthouse::train {

/// Tells how a run gets on. On a terminal, one line that is redrawn; elsewhere a plain line about
/// twenty times a run, and at the first and last step of each stage.
class Progress {
 public:
  /// @param tokens,steps of the whole run
  Progress(std::ostream& out, bool terminal, int64_t steps, int64_t tokens);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepMetrics& metrics, bool edge_of_stage);
  /// A line that stays.
  void say(const std::string& line);

 private:
  std::ostream& out_;
  bool terminal_;
  bool drawn_ = false;
  int64_t steps_, tokens_;
  double rate_ = 0;  ///< tokens a second, smoothed
};

}  // namespace lighthouse::train
