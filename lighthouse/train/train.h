#pragma once

#include <filesystem>
#include <iosfwd>
#include <optional>

#include "lighthouse/distributed/world.h"
#include "lighthouse/run/recipe.h"
#include "lighthouse/train/trainer.h"

namespace lighthouse::train {

/// Where a run begins.
struct Start {
  bool resume = false;  ///< at its newest checkpoint, or the first step where it has none yet
  std::optional<std::filesystem::path> from = {};  ///< at this one of its checkpoints instead
  /// A new run, at this checkpoint of another one, whose model, text and stages up to there are the
  /// same. Later stages, and settings, may be others: branch.json says which.
  std::optional<std::filesystem::path> branch = {};
  bool force = false;  ///< resumes with another recipe too; forced.jsonl says what changed
};

/// Runs a recipe, stage after stage, in the folder recipe.run.out: recipe.toml, data.txt,
/// metrics.jsonl, tensorboard/, checkpoints/ and, at the end, summary.json. Checkpoints are written
/// by a thread; where one cannot be written the run says so and goes on, unless it is the last. The
/// weights after a step depend on the recipe, the text, the number of threads and the machine
/// alone, and not on how often the run was resumed; those of a run by seconds depend on what each
/// step took, too. Resuming at a checkpoint removes what was made after it.
///
/// StopSignals end the run after the step, or between two sequences of an evaluation, with a
/// checkpoint.
///
/// Several ranks share the sequences of each step, and parallel.context ranks each sequence (Mesh,
/// AdamW, train_step). They read the same files; rank 0 writes the folder and to `out`. All stop
/// and skip together.
///
/// @param out gets the progress and the table at the end; a line is redrawn where it is a terminal
/// @param clock is read right before and after each step, and nowhere else
/// @param world the ranks; one that has a GPU (World::gpu) trains there, the others on run.device
/// @return the signal that ended the run; 0 where it is complete
/// @throws std::invalid_argument where the recipe cannot be run, or not by this number of ranks,
///         its folder is in use without `start` saying so, or the checkpoint is of another recipe
///         or other text
/// @throws std::runtime_error where a file cannot be read or written, a checkpoint is damaged,
///         another process has the folder, too many steps or all of them are skipped, or the
///         held-out loss at the end is not finite
/// @throws distributed::PeerError where another rank failed
int train(const run::Recipe& recipe, const Start& start, std::ostream& out, bool terminal,
          const Clock& clock = steady_seconds, const distributed::World& world = {});

}  // namespace lighthouse::train
