#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "lighthouse/train/metrics.h"
#include "lighthouse/train/recipe.h"

namespace lighthouse::train {

/// What came out of a stage. Losses are means per token, in nats.
struct StageSummary {
  std::string name;
  std::string attention;  ///< "dense" or "lighthouse"
  int64_t steps = 0;
  int64_t tokens = 0;
  double seconds = 0;  ///< of training: no evaluations, no checkpoints
  double tokens_per_second = 0;
  double train_loss = 0;  ///< over the last tenth of the steps that were logged
  EvalMetrics before, after;
};

struct Summary {
  std::vector<StageSummary> stages;
  double token_frequency_loss = 0;
};

/// Of a run that is complete.
Summary summarize(const Recipe& recipe, const MetricsHistory& history, double token_frequency_loss);

std::string to_json(const Summary& summary);

/// The table by stage.
void print(std::ostream& out, const Summary& summary);

}  // namespace lighthouse::train
