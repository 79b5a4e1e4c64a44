#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "lighthouse/io/file.h"
#include "lighthouse/run/metrics.h"

namespace lighthouse::run {

/// The metrics of a run as TensorBoard reads them: train/..., eval/..., over the steps.
class TensorBoard {
 public:
  /// Begins another event file in the folder. In TensorBoard it takes the place of what other files
  /// have of steps after `steps_done`.
  TensorBoard(const std::filesystem::path& folder, int64_t steps_done);

  void write(const StepMetrics& step);
  void write(const EvalMetrics& eval);
  void write(const MetricsHistory& history);

 private:
  void scalar(std::string_view tag, int64_t step, double value);
  void event(std::string_view fields);

  io::Appender file_;
};

/// The checksum of records: CRC-32C.
uint32_t crc32c(std::string_view bytes);

}  // namespace lighthouse::run
