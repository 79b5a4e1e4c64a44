#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "lighthouse/io/file.h"

namespace lighthouse::run {

/// Where the files of a run lie.
class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const { return path_; }
  /// The last part of its absolute path.
  std::string name() const { return io::normal_path(path_).filename(); }
  /// Whether a run has begun there.
  bool exists() const { return is_regular_file(recipe()) && is_directory(checkpoints()); }

  std::filesystem::path recipe() const { return path_ / "recipe.toml"; }
  std::filesystem::path data() const { return path_ / "data.txt"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path tensorboard() const { return path_ / "tensorboard"; }
  std::filesystem::path summary() const { return path_ / "summary.json"; }
  /// What the model that the run began with has besides weights (model/base_model.h).
  std::filesystem::path base() const { return path_ / "base"; }
  std::filesystem::path branch() const { return path_ / "branch.json"; }
  std::filesystem::path forced() const { return path_ / "forced.jsonl"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path lock() const { return path_ / "lock"; }

 private:
  std::filesystem::path path_;
};

}  // namespace lighthouse::run
