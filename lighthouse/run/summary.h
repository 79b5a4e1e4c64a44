#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "lighthouse/run/metrics.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// What came out of a stage. Losses are means per token, in nats.
struct StageSummary {
  std::string name;
  nn::Mode attention = nn::Mode::kDense;
  int64_t local = 0;  ///< tokens of pieces; 0: none
  int64_t steps = 0;
  int64_t tokens = 0;
  double seconds = 0;  ///< of training: no evaluations, no checkpoints
  double tokens_per_second = 0;
  double train_loss = 0;           ///< over the last tenth of the steps that were logged
  double dense_loss_before = 0;    ///< held-out, with dense attention
  double trained_loss_before = 0;  ///< held-out, with the attention that the stage trains with
  double dense_loss_after = 0;
  double trained_loss_after = 0;
};

struct Summary {
  std::vector<StageSummary> stages;
  double token_frequency_loss = 0;

  double seconds() const;
  double tokens() const;
  /// After all stages, held-out, with dense attention.
  double final_loss() const { return stages.back().dense_loss_after; }
};

/// Of a run that is complete.
/// @param stage_starts the step that each stage began after, and at the end those of the whole run
Summary summarize(const Recipe& recipe, const std::vector<int64_t>& stage_starts,
                  const MetricsHistory& history, double token_frequency_loss);

std::string to_json(const Summary& summary);
/// Reads what `to_json` has written. Throws std::runtime_error naming the file where it is not
/// that.
Summary read_summary(const std::filesystem::path& file);

/// The table by stage.
void print(std::ostream& out, const Summary& summary);

}  // namespace lighthouse::run
