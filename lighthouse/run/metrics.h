#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lighthouse/io/file.h"

namespace lighthouse::run {

/// A training step. Losses are means per token, in nats.
struct StepMetrics {
  int64_t step = 0;  ///< 1 is the first of the run
  std::string stage;
  std::string attention;  ///< of this step: "dense", "lighthouse" or "local"
  double loss = 0;
  double lr = 0;
  double grad_norm = 0;  ///< before clipping
  int64_t tokens = 0;    ///< of the run so far
  double seconds = 0;    ///< of training so far, resumed runs included; no evaluations, checkpoints
  double tokens_per_second = 0;  ///< of this step
  int64_t memory_bytes = 0;      ///< of a GPU's, the most in the stage so far; of a CPU's, now
};

/// A step whose update was skipped.
struct SkipMetrics {
  int64_t step = 0;
  std::string stage;
  std::string why;
};

/// An evaluation on held-out text.
struct EvalMetrics {
  int64_t step = 0;  ///< steps done
  std::string stage;
  std::string when;  ///< "before" or "after" the stage, or "during" it
  double dense_loss = 0;
  double trained_loss = 0;  ///< with the attention that the stage trains with
  int64_t tokens = 0;
  double seconds = 0;
};

/// All lines of a metrics file, each kind in its order.
struct MetricsHistory {
  std::vector<StepMetrics> steps;
  std::vector<EvalMetrics> evals;
  std::vector<SkipMetrics> skips;
};

/// The line of a metrics file.
std::string to_line(const EvalMetrics& eval);

/// Throws std::runtime_error naming the file and the line that is not one of metrics. A last line
/// that was cut short by the death of its process is left out.
MetricsHistory read_metrics(const std::filesystem::path& path);

/// The metrics of a run, a JSON object a line: {"kind": "step", ...}, {"kind": "skip", ...} or
/// {"kind": "eval", ...} with the fields above.
class MetricsFile {
 public:
  /// Goes on with the file as it was when that many steps were done: later lines, and evaluations
  /// after that very step, are cut off, since they come again.
  MetricsFile(const std::filesystem::path& path, int64_t steps_done);

  void write(const StepMetrics& step);
  void write(const SkipMetrics& skip);
  void write(const EvalMetrics& eval);
  /// Once it has returned, what was written outlasts the machine.
  void sync() { file_.sync(); }

 private:
  io::Appender file_;
};

}  // namespace lighthouse::run
