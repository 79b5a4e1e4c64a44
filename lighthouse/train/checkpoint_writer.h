#pragma once

#include <chrono>
#include <cstdint>
#include <future>
#include <string>
#include <utility>

#include "lighthouse/run/checkpoint.h"

namespace lighthouse::train {

/// Writes checkpoints by a thread while training goes on, one at a time. Where one cannot be
/// written those before it stay.
class CheckpointWriter {
 public:
  /// @param keep,keep_every as Checkpoints::write takes them
  CheckpointWriter(run::Checkpoints checkpoints, int64_t keep, int64_t keep_every)
      : checkpoints_(std::move(checkpoints)), keep_(keep), keep_every_(keep_every) {}

  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Copies the tensors and begins to write. The one before it must have ended (`wait`).
  void begin(const run::Checkpoint& checkpoint);

  /// Whether none is under way, or the one that is ends within that time.
  bool ended(std::chrono::milliseconds within) const;

  /// Once: what went wrong with one that has just ended; empty where nothing did, or none has.
  std::string poll();
  /// The same, when it has ended.
  std::string wait();

 private:
  run::Checkpoints checkpoints_;
  int64_t keep_, keep_every_;
  std::future<std::string> failure_;  ///< of the one under way; its end waits for that one's
};

}  // namespace lighthouse::train
