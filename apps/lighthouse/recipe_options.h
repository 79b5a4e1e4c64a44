#pragma once

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "lighthouse/run/recipe.h"

namespace lighthouse::app {

/// What every verb that takes a recipe is told.
struct RecipeOptions {
  std::string recipe;
  std::vector<std::string> overrides;
  int threads = at::get_num_threads();

  void add_to(CLI::App& verb);

  /// Reads the recipe, and has PyTorch use that many threads.
  run::Recipe read() const;
};

}  // namespace lighthouse::app
