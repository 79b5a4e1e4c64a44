#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// Everything that a run goes on from, between two steps.
struct Checkpoint {
  int64_t step = 0;       ///< steps done in all stages together
  uint64_t position = 0;  ///< tokens trained on, which is the loader's position
  double seconds = 0;     ///< training time
  /// For each stage that had taken a step, the step after which it began.
  std::vector<int64_t> stage_starts;
  int64_t skipped = 0;  ///< steps whose update was skipped
  int64_t threads = 0;  ///< threads of PyTorch; their number decides the last bits of results
  int64_t ranks = 1;    ///< processes that trained together; their number does so too
  uint64_t corpus = 0;  ///< data::Corpus::fingerprint
  Recipe recipe;        ///< the fields that decide about the weights; the others have defaults
  at::Tensor random;    ///< state of PyTorch's random number generator of the CPU
  std::map<std::string, at::Tensor> model;      ///< LanguageModel::weights
  std::map<std::string, at::Tensor> optimizer;  ///< train::AdamW::state
};

/// A run's checkpoints: folders "step-00000123" in one folder. One is written under another name
/// and renamed when all of it is on the disk, so a name stands for a whole checkpoint whenever the
/// process dies, or the machine. It holds random.safetensors, state.json, the weights and the
/// optimizer's state in the safetensors files that manifest.json lists (io/sharded_tensors.h), and
/// checksums.txt, which `xxhsum -c checksums.txt` checks.
class Checkpoints {
 public:
  explicit Checkpoints(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// Paths of all checkpoints, oldest first.
  std::vector<std::filesystem::path> list() const;

  /// Writes a checkpoint, then removes all but the newest `keep`, and those of the multiples of
  /// `keep_every` steps where that is not 0. Throws std::runtime_error naming
  /// the path; those that were there are there then.
  void write(const Checkpoint& checkpoint, int64_t keep, int64_t keep_every = 0) const;

  /// Removes what a process that died left half-written.
  void remove_partial() const;

  /// Removes the checkpoints of later steps.
  void remove_after(int64_t step) const;

 private:
  void remove(const std::filesystem::path& path) const;

  std::filesystem::path folder_;
};

/// The step that each stage begins after, of the recipe's stages that have taken one by `step`. The
/// recipe is by steps.
std::vector<int64_t> stage_starts(const Recipe& recipe, int64_t step);

/// Throws std::runtime_error, naming the file and the checkpoint before it, where a file is missing
/// or any byte of one is not what was written.
Checkpoint read_checkpoint(const std::filesystem::path& folder);

/// Copies tensors into those of the same names. Throws std::runtime_error, naming the tensor and
/// `source`, unless both have the same names, shapes and types.
void restore(const std::map<std::string, at::Tensor>& from,
             const std::map<std::string, at::Tensor>& into, const std::string& source);

}  // namespace lighthouse::run
