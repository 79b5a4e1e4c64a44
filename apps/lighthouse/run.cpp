#include "apps/lighthouse/run.h"

#include "lighthouse/core/check.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;

fs::path newest_checkpoint(const train::RunFolder& folder) {
  const auto all = train::Checkpoints(folder.checkpoints()).list();
  check_argument(!all.empty(), "there is no checkpoint in '", folder.checkpoints().string(),
                 "'; RUN must be the folder of a run that has made one");
  return all.back();
}

}  // namespace

void RunOptions::add_to(CLI::App& verb) {
  verb.add_option("RUN", run, "folder of the run")->required();
  verb.add_option("--checkpoint", checkpoint, "in place of the run's newest");
}

Run open_run(const RunOptions& options) {
  const train::RunFolder folder(options.run);
  check_argument(fs::exists(folder.recipe()), "RUN is '", options.run,
                 "'; it must be the folder of a run, with a recipe.toml");
  const train::Recipe recipe = train::Recipe::read(folder.recipe());
  const fs::path path =
      options.checkpoint.empty() ? newest_checkpoint(folder) : fs::path(options.checkpoint);
  return {folder, recipe, path, train::read_checkpoint(path)};
}

}  // namespace lighthouse::app
