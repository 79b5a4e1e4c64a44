#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "lighthouse/run/metrics.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::train {

/// Tells how a run gets on: its loss, speed and memory, and the time that is left of each stage; of
/// one by steps that has not begun a "?". On a terminal, one line that is redrawn; elsewhere a
/// plain line about twenty times a run, and at the first and last step of each stage.
class Progress {
 public:
  Progress(std::ostream& out, bool terminal, const std::vector<run::StageRecipe>& stages);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const run::StepMetrics& metrics, bool edge_of_stage);
  /// Of what is done before the first step.
  /// @param unit of which 10^9 are one
  void prepare(const std::string& what, uint64_t done, uint64_t all,
               const std::string& unit = "GB");
  /// A line that stays.
  void say(const std::string& line);

 private:
  double done(const run::StepMetrics& metrics) const;
  std::string left(const run::StepMetrics& metrics) const;
  /// A line that the next one takes the place of.
  void draw(const std::string& line);

  std::ostream& out_;
  bool terminal_;
  bool drawn_ = false;
  const std::vector<run::StageRecipe>& stages_;
  bool by_seconds_;
  double all_ = 0;        ///< steps or seconds of the whole run
  int64_t line_ = 0;      ///< how many of the plain lines are due
  std::string stage_;     ///< the one under way
  double pace_ = 0;       ///< its seconds a token, smoothed
  std::string prepared_;  ///< what `prepare` was told of last, and how many tenths of it
};

}  // namespace lighthouse::train
