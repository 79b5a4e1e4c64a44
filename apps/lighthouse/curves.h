#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lighthouse/train/metrics.h"

namespace lighthouse::app {

/// What a run, ended or not, has measured so far.
struct RunMetrics {
  std::string name;  ///< of its folder
  train::MetricsHistory history;
};

/// Throws std::invalid_argument where the folder is not that of a run with a step or an evaluation.
RunMetrics read_run_metrics(const std::filesystem::path& folder);

/// An SVG picture of runs: loss over tokens and over time, throughput and memory over tokens.
/// Dashed lines mark where a stage ends.
std::string picture_of(const std::vector<RunMetrics>& runs);

}  // namespace lighthouse::app
