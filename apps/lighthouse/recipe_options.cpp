#include "apps/lighthouse/recipe_options.h"

namespace lighthouse::app {

void RecipeOptions::add_to(CLI::App& verb) {
  verb.add_option("RECIPE", recipe, "TOML file of the run")->required();
  verb.add_option("--set", overrides,
                  "KEY=VALUE in place of the recipe's: optimizer.lr=1e-3, stage.0.steps=10")
      ->allow_extra_args(false);
  verb.add_option("--threads", threads, "threads")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
}

train::Recipe RecipeOptions::read() const {
  at::set_num_threads(threads);
  return train::Recipe::read(recipe, overrides);
}

}  // namespace lighthouse::app
