#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "lighthouse/model/llama.h"
#include "lighthouse/train/checkpoint.h"
#include "lighthouse/train/recipe.h"
#include "lighthouse/train/run_folder.h"

namespace lighthouse::app {

/// What every verb that takes a run is told.
struct RunOptions {
  std::string run;
  std::string checkpoint;

  void add_to(CLI::App& verb);
};

/// A run that is there, and one of its checkpoints.
struct Run {
  train::RunFolder folder;
  train::Recipe recipe;        ///< as it was when the checkpoint was made (train::recipe_of)
  std::filesystem::path path;  ///< of the checkpoint
  train::Checkpoint checkpoint;
};

/// Throws std::invalid_argument where there is no run, no checkpoint of it, or the checkpoint is of
/// another run.
Run open_run(const RunOptions& options);

/// The stage whose attention "as trained" is: the last with Lighthouse, or the last of all where
/// there is none.
const train::StageRecipe& stage_as_trained(const train::Recipe& recipe);

/// The model of the run's checkpoint, with the attention of that stage.
/// @param device in place of the recipe's; empty: the recipe's
model::Llama load_model(const Run& run, const std::string& device);

}  // namespace lighthouse::app
