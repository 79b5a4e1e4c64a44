#include "apps/lighthouse/recipe_options.h"

#include "apps/lighthouse/checks.h"

namespace lighthouse::app {

void RecipeOptions::add_to(CLI::App& verb) {
  verb.add_option("RECIPE", recipe, "TOML file that describes a run")
      ->check(not_empty())
      ->required();
  verb.add_option(
          "--set", overrides,
          "KEY=VALUE: override a key of the recipe, like optimizer.lr=1e-3 or stage.0.steps=10; "
          "can be repeated")
      ->allow_extra_args(false);
  verb.add_option("--threads", threads, "CPU threads")
      ->check(integer(1, 1024))
      ->capture_default_str();
}

run::Recipe RecipeOptions::read() const {
  at::set_num_threads(threads);
  return run::Recipe::read(recipe, overrides);
}

}  // namespace lighthouse::app
