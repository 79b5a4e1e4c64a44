#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "lighthouse/model/language_model.h"
#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/recipe.h"
#include "lighthouse/run/run_folder.h"

namespace lighthouse::app {

/// What every verb that takes a run is told.
struct RunOptions {
  std::string run;
  std::string checkpoint;

  void add_to(CLI::App& verb);
};

/// A run that is there, and one of its checkpoints.
struct Run {
  run::RunFolder folder;
  run::Recipe recipe;          ///< as it was when the checkpoint was made (run::recipe_of)
  std::filesystem::path path;  ///< of the checkpoint
  run::Checkpoint checkpoint;
};

/// Throws std::invalid_argument where there is no run, no checkpoint of it, or the checkpoint is of
/// another run.
Run open_run(const RunOptions& options);

/// The stage whose attention "as trained" is: the last that is not dense, or the last of all where
/// there is none.
const run::StageRecipe& stage_as_trained(const run::Recipe& recipe);

/// The model of the run's checkpoint, with the attention of that stage.
/// @param device in place of the recipe's; empty: the recipe's
std::shared_ptr<model::LanguageModel> load_model(const Run& run, const std::string& device);

}  // namespace lighthouse::app
