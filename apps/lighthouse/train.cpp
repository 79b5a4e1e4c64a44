#include "lighthouse/train/trainer.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/train/run_folder.h"

namespace lighthouse::app {
namespace {

struct Options {
  RecipeOptions recipe;
  std::string out;
  bool resume = false;
  std::string resume_from;
  std::string branch_from;
  bool force = false;
  bool dry_run = false;
};

void run(const Options& options) {
  train::Recipe recipe = options.recipe.read();
  if (!options.out.empty()) recipe.run.out = options.out;
  train::print(std::cout, recipe);
  if (options.dry_run) return;

  check_argument(!options.force || options.resume || !options.resume_from.empty(),
                 "--force is given; it goes with --resume or --resume-from");
  train::Start start;
  start.resume = options.resume;
  start.force = options.force;
  if (!options.resume_from.empty()) start.from = options.resume_from;
  if (!options.branch_from.empty()) start.branch = options.branch_from;
  const int signal = train::train(recipe, start, std::cout, isatty(STDOUT_FILENO) == 1);
  const train::RunFolder folder(recipe.run.out);
  if (signal != 0) {
    std::cout << "stopped, with a checkpoint in " << folder.checkpoints().string()
              << "; to go on:\n  lighthouse train " << folder.recipe().string()
              << " --resume --out " << recipe.run.out << '\n';
    throw CLI::RuntimeError(128 + signal);
  }
  std::cout << "metrics:     " << folder.metrics().string() << '\n'
            << "summary:     " << folder.summary().string() << '\n'
            << "checkpoints: " << folder.checkpoints().string() << '\n';
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("train", "Trains a model as a recipe says, stage after stage");
  const auto options = std::make_shared<Options>();
  options->recipe.add_to(*verb);
  verb->add_option("--out", options->out, "the run's folder, in place of run.out");
  CLI::Option* branch = verb->add_option(
      "--branch-from", options->branch_from,
      "begin a new run at this checkpoint of another, whose later stages may be others");
  CLI::Option* resume = verb->add_flag("--resume", options->resume,
                                       "go on from the run's newest checkpoint, or begin again "
                                       "where it has none yet");
  verb->add_option("--resume-from", options->resume_from,
                   "go on from this one of the run's checkpoints; removes what came after it")
      ->excludes(resume)
      ->excludes(branch);
  branch->excludes(resume);
  verb->add_flag("--force", options->force,
                 "resume with another recipe too; RUN/forced.jsonl says what changed");
  verb->add_flag("--dry-run", options->dry_run, "only say what would run");
  verb->footer("A recipe has these keys:\n" + train::describe_fields());
  verb->callback([options] { run(*options); });
}

}  // namespace lighthouse::app
