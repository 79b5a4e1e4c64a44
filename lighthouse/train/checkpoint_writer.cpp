#include "lighthouse/train/checkpoint_writer.h"

#include <ATen/ATen.h>

#include "lighthouse/core/check.h"

namespace lighthouse::train {
namespace {

/// A copy in memory of the processor.
std::map<std::string, at::Tensor> copy(const std::map<std::string, at::Tensor>& tensors) {
  std::map<std::string, at::Tensor> copies;
  for (const auto& [name, tensor] : tensors) {
    copies[name] = tensor.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
  }
  return copies;
}

}  // namespace

void CheckpointWriter::begin(const run::Checkpoint& checkpoint) {
  run::Checkpoint copied = checkpoint;
  copied.model = copy(checkpoint.model);
  copied.optimizer = copy(checkpoint.optimizer);
  copied.random = checkpoint.random.clone();
  failure_ = std::async(std::launch::async, [this, copied = std::move(copied)]() -> std::string {
    try {
      checkpoints_.write(copied, keep_, keep_every_);
      return "";
    } catch (const std::exception& error) {
      return message("the checkpoint after step ", copied.step,
                     " could not be written: ", error.what(), "; those before it are kept");
    }
  });
}

bool CheckpointWriter::ended(std::chrono::milliseconds within) const {
  return !failure_.valid() || failure_.wait_for(within) == std::future_status::ready;
}

std::string CheckpointWriter::poll() { return ended(std::chrono::milliseconds(0)) ? wait() : ""; }

std::string CheckpointWriter::wait() { return failure_.valid() ? failure_.get() : ""; }

}  // namespace lighthouse::train
