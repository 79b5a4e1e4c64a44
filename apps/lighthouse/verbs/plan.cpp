#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>

#include "apps/lighthouse/device.h"
#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/trial.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/checkpoint_space.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/train/device.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::print_table;
using io::Table;

/// Milliseconds and bytes of a step.
struct Cost {
  double time = 0, memory = 0;

  Cost operator+(const Cost& other) const { return {time + other.time, memory + other.memory}; }
  Cost operator-(const Cost& other) const { return {time - other.time, memory - other.memory}; }
  Cost operator*(int64_t factor) const {
    return {time * static_cast<double>(factor), memory * static_cast<double>(factor)};
  }
};

/// Bytes of a weight and what belongs to it between steps: itself, its two moments, and the copy
/// that the model computes with.
double bytes_of_weight(const run::Recipe& recipe) {
  return recipe.run.dtype == run::Dtype::kFloat32 ? 12 : 14;
}

/// A step of a model that has so many layers, all of one kind, beyond its weights and moments.
Cost measure(run::Recipe recipe, run::StageRecipe stage, int64_t layers, nn::Mode attention,
             at::Device device) {
  recipe.model.num_hidden_layers = layers;
  stage.attention = attention;
  stage.dense_layers.clear();
  const Trial trial = run_trial(recipe, stage, device, 3);
  const double states =
      bytes_of_weight(recipe) * static_cast<double>(recipe.model.num_parameters());
  return {trial.step.median(), static_cast<double>(trial.peak_bytes) - states};
}

/// A layer costs the difference of two layers and one; the rest of the model, what one layer
/// leaves.
Cost expect(const run::Recipe& recipe, const run::StageRecipe& stage, at::Device device) {
  const nn::Mode attention = run::computed_attention(stage);
  const Cost one = measure(recipe, stage, 1, attention, device);
  const Cost layer = measure(recipe, stage, 2, attention, device) - one;
  const int64_t dense = run::count_dense_layers(stage, recipe.model.num_hidden_layers);
  Cost dense_layer = layer;
  if (attention != nn::Mode::kDense && dense > 0) {
    dense_layer = measure(recipe, stage, 2, nn::Mode::kDense, device) -
                  measure(recipe, stage, 1, nn::Mode::kDense, device);
  }
  return one - layer + layer * (recipe.model.num_hidden_layers - dense) + dense_layer * dense;
}

std::string duration(double seconds) {
  if (seconds < 120) return fixed(seconds, 1, " s");
  if (seconds < 7200) return fixed(seconds / 60, 1, " min");
  return fixed(seconds / 3600, 1, " h");
}

std::string gib(double bytes) { return fixed(bytes / (1 << 30), 2); }

/// What is measured so far of the ways to use pieces (docs/comparison.md, docs/method.md).
constexpr const char* kOnPieces = R"(
When to use which attention, as far as it is measured (docs/comparison.md): train on short pieces until the loss has left its
first plateau; before that, only the number of tokens counts. Then Lighthouse with pieces pays: at a context of 98304, 25 M
parameters ended 0.10 to 0.12 nats lower than with short pieces alone, in the same seconds (three seeds), best with pieces
that grow (1024, 4096, 16384). A ladder of dense contexts (2048, 8192, 32768) ends as low there (0.002 +- 0.002, five seeds). At 8192, 1 M
parameters trained from nothing ended 0.14 nats higher with Lighthouse than with pieces alone (one seed).
)";

void plan(const RecipeOptions& options) {
  const run::Recipe recipe = options.read();
  const at::Device device = train::find_device(recipe.run.device, "run.device");
  const auto available = static_cast<double>(memory_of(device));
  const auto parameters = static_cast<double>(recipe.model.num_parameters());
  const double states = bytes_of_weight(recipe) * parameters;
  std::cout << describe(device) << ", " << to_string(recipe.run.dtype) << ", " << gib(available)
            << " GiB of memory\n\nparameters " << recipe.model.num_parameters() << "; GiB: weights "
            << gib(4 * parameters) << ", moments " << gib(8 * parameters);
  const bool copies = recipe.run.dtype != run::Dtype::kFloat32;
  if (copies) std::cout << ", copies in bfloat16 " << gib(2 * parameters);
  std::cout << ", gradients " << gib((copies ? 6 : 4) * parameters) << "; a checkpoint on the disk "
            << gib(run::checkpoint_bytes(recipe)) << "\n\n";

  Table table{{"stage", "attention", "context", "S", "local", "area", "steps", "ms a step",
               "ktok/s", "time", "activations GiB", "all GiB", "fits"}};
  double seconds = 0;
  const bool timed = recipe.by_seconds();
  for (const run::StageRecipe& stage : recipe.stages) {
    std::cerr << "stage " << stage.name << " ...\n";
    const Cost cost = expect(recipe, stage, device);
    const auto context = static_cast<double>(stage.context);
    const auto or_none = [](int64_t number) { return number == 0 ? "-" : std::to_string(number); };
    const double area = run::attention_area(stage, recipe.model.num_hidden_layers);
    const double all = states + cost.memory;
    const double steps =
        timed ? std::max(1.0, std::ceil(1e3 * stage.seconds / cost.time)) : stage.length();
    const double stage_seconds = timed ? stage.seconds : cost.time * steps / 1e3;
    seconds += stage_seconds;
    table.push_back(
        {stage.name, std::string(to_string(run::computed_attention(stage))),
         std::to_string(stage.context), or_none(run::rows_of(stage)),
         or_none(run::pieces_of(stage)), fixed(100 * area, 1, " %"), fixed(steps, 0),
         fixed(cost.time, 1), fixed(static_cast<double>(stage.batch) * context / cost.time, 2),
         duration(stage_seconds), gib(cost.memory), gib(all), all < available ? "yes" : "NO"});
  }
  print_table(std::cout, table, 2);
  std::cout
      << "\nAll stages: " << duration(seconds)
      << ". Estimated from training steps of models of one and of two layers on this machine. "
         "Activations: all that a step\nallocates at once besides weights, copies and moments. "
         "Evaluations and checkpoints are not included. Local:\ntokens of pieces; area: pairs of "
         "positions that attention compares in a step, as a share of dense attention's.\n";
  if (std::ranges::any_of(
          recipe.stages, [](const run::StageRecipe& stage) { return run::pieces_of(stage) > 0; })) {
    std::cout << kOnPieces;
  }
}

}  // namespace

void add_plan(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("plan", "Estimate the memory, disk and time that a run will need");
  const auto options = std::make_shared<RecipeOptions>();
  options->add_to(*verb);
  verb->callback([options] { plan(*options); });
}

}  // namespace lighthouse::app
