#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lighthouse/model/llama.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// Everything that a run goes on from, between two steps.
struct Checkpoint {
  int64_t step = 0;                   ///< steps done, of all stages together
  uint64_t position = 0;              ///< of the loader: tokens trained on
  double seconds = 0;                 ///< of training
  std::vector<int64_t> stage_starts;  ///< the step that each stage began after, of those that had
                                      ///< taken one
  int64_t skipped = 0;                ///< steps whose update was skipped
  int64_t threads = 0;                ///< other numbers of threads give other last bits
  uint64_t corpus = 0;                ///< data::Corpus::fingerprint
  Recipe recipe;      ///< of it, what decides about the weights; the rest has its defaults
  at::Tensor random;  ///< state of PyTorch's generator of the CPU
  std::map<std::string, at::Tensor> model;      ///< names of Hugging Face's LlamaForCausalLM
  std::map<std::string, at::Tensor> optimizer;  ///< AdamW::state
};

/// A run's checkpoints: folders "step-00000123" in one folder. One is written under another name
/// and renamed when all of it is on the disk, so a name stands for a whole checkpoint whenever the
/// process dies, or the machine. It holds model.safetensors, optimizer.safetensors,
/// random.safetensors, state.json, and checksums.txt, of the others' bytes.
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

/// The parameters themselves, not copies.
std::map<std::string, at::Tensor> parameters_of(const model::Llama& model);

/// Copies tensors into those of the same names. Throws std::runtime_error, naming the tensor and
/// `source`, unless both have the same names, shapes and types.
void restore(const std::map<std::string, at::Tensor>& from,
             const std::map<std::string, at::Tensor>& into, const std::string& source);

}  // namespace lighthouse::run
