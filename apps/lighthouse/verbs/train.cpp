#include "lighthouse/train/train.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>

#include "apps/lighthouse/as_rank.h"
#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/rank.h"
#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/terminal.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/distributed/connect.h"
#include "lighthouse/run/run_folder.h"

namespace lighthouse::app {
namespace {

struct TrainOptions {
  RecipeOptions recipe;
  std::string out;
  bool resume = false;
  std::string resume_from;
  std::string branch_from;
  bool force = false;
  bool dry_run = false;
};

/// Where a launcher has started the command again, resumes the run that it began before; the
/// command itself does not ask for that.
void go_on(train::Start& start, const run::RunFolder& folder, const distributed::World& world,
           std::ostream& out) {
  std::error_code error;
  const bool has_begun = world.is_first() && std::filesystem::exists(folder.path(), error) &&
                         !std::filesystem::is_empty(folder.path(), error);
  if (!world.any(has_begun)) return;
  out << "started again by its launcher: the run goes on\n";
  start = {.resume = true, .force = start.force};
}

void run(const TrainOptions& options, distributed::Rendezvous& rendezvous) {
  run::Recipe recipe = options.recipe.read();
  if (!options.out.empty()) recipe.run.out = options.out;
  std::ostream& out = of_first(rendezvous.launch(), std::cout);
  run::print(out, recipe);
  if (options.dry_run) return;

  check_argument(!options.force || options.resume || !options.resume_from.empty(),
                 "--force needs --resume or --resume-from");
  train::Start start;
  start.resume = options.resume;
  start.force = options.force;
  if (!options.resume_from.empty()) start.from = options.resume_from;
  if (!options.branch_from.empty()) start.branch = options.branch_from;
  distributed::World world =
      connect_world(rendezvous, recipe.run.device, "run.device", recipe.parallel);
  const run::RunFolder folder(recipe.run.out);
  if (world.any(distributed::is_restart(std::getenv))) go_on(start, folder, world, out);
  const int signal = train::train(recipe, start, out, is_terminal(), train::steady_seconds, world);
  world.close();
  if (signal != 0) {
    out << "stopped, with a checkpoint in " << folder.checkpoints().string()
        << "; to resume:\n  lighthouse train " << folder.recipe().string() << " --resume\n";
    throw CLI::RuntimeError(128 + signal);
  }
  out << "metrics:     " << folder.metrics().string() << '\n'
      << "summary:     " << folder.summary().string() << '\n'
      << "checkpoints: " << folder.checkpoints().string() << '\n';
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("train", "Train a model as a recipe describes, stage by stage");
  const auto options = std::make_shared<TrainOptions>();
  options->recipe.add_to(*verb);
  verb->add_option("--out", options->out, "run folder; overrides run.out")->check(not_empty());
  CLI::Option* branch =
      verb->add_option(
              "--branch-from", options->branch_from,
              "start a new run from this checkpoint of another run; its later stages may differ")
          ->check(not_empty());
  CLI::Option* resume = verb->add_flag("--resume", options->resume,
                                       "resume from the run's newest checkpoint, or from the first "
                                       "step if there is none");
  verb->add_option("--resume-from", options->resume_from,
                   "resume from this checkpoint of the run; what came after it is removed")
      ->check(not_empty())
      ->excludes(resume)
      ->excludes(branch);
  branch->excludes(resume);
  verb->add_flag("--force", options->force,
                 "resume even if the recipe has changed; RUN/forced.jsonl records the changes");
  verb->add_flag("--dry-run", options->dry_run, "print what would run, without running it");
  verb->footer("Keys of a recipe, their defaults and meaning:\n" + run::describe_fields());
  verb->callback([options] {
    as_rank([&](distributed::Rendezvous& rendezvous) { run(*options, rendezvous); });
  });
}

}  // namespace lighthouse::app
