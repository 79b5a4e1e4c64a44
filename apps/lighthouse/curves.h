#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lighthouse/train/metrics.h"

namespace lighthouse::app {

/// What a run, ended or not, has measured so far.
struct RunMetrics {
  std::string name;
  train::MetricsHistory history;
};

/// Runs are called by their folders; where two folders have one name, by their paths.
/// Throws std::invalid_argument where a folder is not that of a run with a step or an evaluation.
std::vector<RunMetrics> read_run_metrics(const std::vector<std::string>& folders);

/// An SVG picture of runs: loss over tokens and over time, throughput and memory over tokens.
/// Dashed lines mark where a stage ends.
std::string picture_of(const std::vector<RunMetrics>& runs);

}  // namespace lighthouse::app
