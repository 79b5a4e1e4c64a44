#include "lighthouse/train/trainer.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/lighthouse/verbs.h"
#include "lighthouse/train/recipe.h"
#include "lighthouse/train/run_folder.h"

namespace lighthouse::app {
namespace {

struct Options {
  std::string recipe;
  std::vector<std::string> overrides;
  std::string out;
  bool resume = false;
  std::string resume_from;
  std::string branch_from;
  bool dry_run = false;
  int threads = at::get_num_threads();
};

void run(const Options& options) {
  at::set_num_threads(options.threads);
  train::Recipe recipe = train::Recipe::read(options.recipe, options.overrides);
  if (!options.out.empty()) recipe.run.out = options.out;
  train::print(std::cout, recipe);
  if (options.dry_run) return;

  train::Start start;
  start.resume = options.resume;
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
  verb->add_option("RECIPE", options->recipe, "TOML file of the run")->required();
  verb->add_option("--set", options->overrides,
                   "KEY=VALUE in place of the recipe's: optimizer.lr=1e-3, stage.0.steps=10")
      ->allow_extra_args(false);
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
  verb->add_flag("--dry-run", options->dry_run, "only say what would run");
  verb->add_option("--threads", options->threads, "threads")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  verb->footer("A recipe has these keys:\n" + train::describe_fields());
  verb->callback([options] { run(*options); });
}

}  // namespace lighthouse::app
