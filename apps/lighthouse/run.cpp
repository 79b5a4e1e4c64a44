#include "apps/lighthouse/run.h"

#include <ostream>

#include "apps/lighthouse/checks.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/recipe_changes.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;

fs::path newest_checkpoint(const run::RunFolder& folder) {
  const auto all = run::Checkpoints(folder.checkpoints()).list();
  check_argument(!all.empty(), "there is no checkpoint in '", folder.checkpoints().string(),
                 "'; RUN must be the folder of a run that has saved one");
  return all.back();
}

}  // namespace

void RunOptions::add_to(CLI::App& verb) {
  verb.add_option("RUN", run, "run folder")->check(not_empty())->required();
  verb.add_option("--checkpoint", checkpoint, "checkpoint folder; default: the run's newest")
      ->check(not_empty());
}

void ParallelOptions::add_to(CLI::App& verb) {
  verb.add_option("--parallel-context", context,
                  "under a launcher: ranks that share each sequence; default: the recipe's "
                  "parallel.context")
      ->check(integer(1));
  verb.add_option("--parallel-exchange", exchange,
                  message("how they give one another what attention needs: ",
                          all_words<distributed::ExchangeChoice>(),
                          "; default: the recipe's parallel.exchange"))
      ->check(not_empty());
}

void ParallelOptions::set(run::Recipe& recipe, const distributed::Launch& launch) const {
  run::ParallelRecipe& parallel = recipe.parallel;
  if (context > 0) {
    parallel.context = context;
  } else if (launch.size == 1) {
    parallel.context = 1;
  }
  if (!exchange.empty()) {
    parallel.exchange = parse_word<distributed::ExchangeChoice>(exchange, "--parallel-exchange");
  }
  run::validate_parallel(recipe, stage_as_trained(recipe));
}

Run open_run(const RunOptions& options, std::ostream& notes) {
  const run::RunFolder folder(options.run);
  check_argument(fs::exists(folder.recipe()), "RUN is '", options.run,
                 "'; it must be the folder of a run, with a recipe.toml");
  const run::Recipe recipe = run::Recipe::read(folder.recipe());
  const fs::path path =
      options.checkpoint.empty() ? newest_checkpoint(folder) : fs::path(options.checkpoint);
  const run::Checkpoint checkpoint = run::read_checkpoint(path);
  if (const auto changes = run::recipe_changes(recipe, checkpoint); !changes.empty()) {
    const fs::path place = io::normal_path(path).parent_path();
    const bool own = fs::exists(folder.checkpoints()) && equivalent(place, folder.checkpoints());
    check_argument(own, "--checkpoint is '", path.string(), "', which is of another run than '",
                   options.run, "': ", run::joined(changes));
    notes << "note: recipe.toml has changed since this checkpoint, whose own recipe is used: "
          << run::joined(changes) << '\n';
  }
  return {folder, run::recipe_of(checkpoint, recipe), path, checkpoint};
}

const run::StageRecipe& stage_as_trained(const run::Recipe& recipe) {
  for (auto stage = recipe.stages.rbegin(); stage != recipe.stages.rend(); ++stage) {
    if (run::computed_attention(*stage) != nn::Mode::kDense) return *stage;
  }
  return recipe.stages.back();
}

Rank connect(distributed::Rendezvous& rendezvous, const Run& run, const std::string& device,
             train::Facts options) {
  const bool is_own = device.empty();
  // A run that goes on makes new checkpoints meanwhile.
  options.emplace_back("the checkpoint", run.path.filename().string());
  return connect(rendezvous, is_own ? run.recipe.run.device : device,
                 is_own ? "run.device of the recipe" : "--device", run.recipe, options);
}

std::shared_ptr<model::LanguageModel> load_model(const Run& run, const Rank& rank) {
  const run::StageRecipe& stage = stage_as_trained(run.recipe);
  auto model = run::new_model(run.recipe, rank.device);
  run::restore(run.checkpoint.model, model->weights(), "the checkpoint");
  model->to(run::scalar_type(run.recipe.run.dtype));
  model->set_attention(run::attention_plan(run.recipe, stage, rank.mesh.context));
  return model;
}

}  // namespace lighthouse::app
