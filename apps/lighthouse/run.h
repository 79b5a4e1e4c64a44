#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "apps/lighthouse/rank.h"
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

/// How several ranks share the sequences that a run's model reads; it may have been trained by
/// another number of them.
struct ParallelOptions {
  int64_t context = 0;   ///< 0: as its recipe says, or one where there is no launcher
  std::string exchange;  ///< empty: as its recipe says

  void add_to(CLI::App& verb);

  /// Sets [parallel] of the run's recipe by these options. Throws std::invalid_argument where that
  /// many ranks cannot share sequences of the stage "as trained".
  void set(run::Recipe& recipe, const distributed::Launch& launch) const;
};

/// A run that is there, and one of its checkpoints.
struct Run {
  run::RunFolder folder;
  run::Recipe recipe;          ///< as it was when the checkpoint was made (run::recipe_of)
  std::filesystem::path path;  ///< of the checkpoint
  run::Checkpoint checkpoint;
};

/// @param notes for what the reader should know about the checkpoint
/// @throws std::invalid_argument where there is no run, no checkpoint of it, or the checkpoint is
///         of another run
Run open_run(const RunOptions& options, std::ostream& notes);

/// Meets the other ranks to work on a run.
/// @param device in place of the recipe's; empty: the recipe's
/// @param options the verb's, in which ranks must agree
/// @throws std::invalid_argument where they found other checkpoints, besides what `connect` throws
Rank connect(distributed::Rendezvous& rendezvous, const Run& run, const std::string& device,
             train::Facts options);

/// The stage whose attention "as trained" is: the last that is not dense, or the last of all where
/// there is none.
const run::StageRecipe& stage_as_trained(const run::Recipe& recipe);

/// The model of the run's checkpoint on the rank's device, with the attention of that stage.
std::shared_ptr<model::LanguageModel> load_model(const Run& run, const Rank& rank);

}  // namespace lighthouse::app
