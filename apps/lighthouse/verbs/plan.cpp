#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>

#include "apps/lighthouse/as_rank.h"
#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/device.h"
#include "apps/lighthouse/rank.h"
#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/trial.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/checkpoint_space.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/stage.h"

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

/// Bytes that a rank keeps of a weight: what lasts from step to step, and its gradients in one.
struct WeightBytes {
  double weights, moments, copies, gradients;

  double states() const { return weights + moments + copies; }
};

/// @param ranks of the run (train::AdamW says what each of them has)
WeightBytes bytes_of_weight(const run::Recipe& recipe, int64_t ranks) {
  const bool copies = recipe.run.dtype != run::Dtype::kFloat32;
  if (ranks == 1 || !recipe.parallel.shard_optimizer) {
    return {.weights = 4, .moments = 8, .copies = copies ? 2.0 : 0, .gradients = copies ? 6.0 : 4};
  }
  const double part = 1 / static_cast<double>(ranks);
  return {.weights = copies ? 4 * part : 4,
          .moments = 8 * part,
          .copies = copies ? 2.0 : 0,
          .gradients = (copies ? 6 : 8) + 4 * part};
}

/// What one of several ranks computes of a stage, as a stage of its own: its sequences, and of each
/// its share of tokens and of what is selected.
run::StageRecipe share_of(const run::Recipe& recipe, run::StageRecipe stage, int64_t ranks) {
  const int64_t sharing = recipe.parallel.context;
  stage.batch /= ranks / sharing;
  if (stage.micro_batch > stage.batch) stage.micro_batch = stage.batch;
  if (sharing == 1) return stage;
  stage.context /= sharing;
  stage.documents_per_row = (stage.documents_per_row + sharing - 1) / sharing;
  Config& config = stage.config;
  config.budget = (config.budget + sharing - 1) / sharing;
  config.tile_budget = std::min(config.tile_budget, config.budget);
  while (config.budget % config.tile_budget != 0) --config.tile_budget;
  return stage;
}

/// A step of a model that has `layers` layers, all of one kind, beyond its weights and moments.
Cost measure(run::Recipe recipe, run::StageRecipe stage, int64_t layers, nn::Mode attention,
             const Rank& rank) {
  recipe.model.num_hidden_layers = layers;
  stage.attention = attention;
  stage.dense_layers.clear();
  const Trial trial = run_trial(recipe, stage, rank, 3);
  const double states = bytes_of_weight(recipe, rank.world.size()).states() *
                        static_cast<double>(recipe.model.num_parameters());
  return {trial.step.median(), static_cast<double>(trial.peak_bytes) - states};
}

/// A layer costs the difference of two layers and one; the rest of the model, what one layer
/// leaves.
Cost expect(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank) {
  const nn::Mode attention = run::computed_attention(stage);
  const Cost one = measure(recipe, stage, 1, attention, rank);
  const Cost layer = measure(recipe, stage, 2, attention, rank) - one;
  const int64_t dense = run::count_dense_layers(stage, recipe.model.num_hidden_layers);
  Cost dense_layer = layer;
  if (attention != nn::Mode::kDense && dense > 0) {
    dense_layer = measure(recipe, stage, 2, nn::Mode::kDense, rank) -
                  measure(recipe, stage, 1, nn::Mode::kDense, rank);
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
that grow (1024, 4096, 16384). A ladder of dense contexts (2048, 8192, 32768) ends as low there (0.002 +- 0.002, five seeds),
and 0.05 +- 0.03 higher at a context of 262144 (two seeds). At 8192, 1 M parameters trained from nothing ended 0.14 nats
higher with Lighthouse than with pieces alone (one seed).
)";

struct PlanOptions {
  RecipeOptions recipe;
  int64_t ranks = 0;  ///< 0: those of the launch
};

void plan(const PlanOptions& options, distributed::Rendezvous& rendezvous) {
  const distributed::Launch& launch = rendezvous.launch();
  std::ostream& out = of_first(launch, std::cout);
  const run::Recipe recipe = options.recipe.read();
  const int64_t sharing = recipe.parallel.context;
  int64_t ranks = launch.size > 1 ? launch.size : sharing;
  if (options.ranks > 0) ranks = options.ranks;
  check_argument(launch.size == 1 || ranks == launch.size, "--ranks is ", ranks, ", and ",
                 launch.launcher, " has started ", launch.size,
                 " ranks; leave it out to plan for those");
  run::check_ranks(recipe, ranks);
  const bool are_there = ranks == launch.size;
  // What ranks exchange is not timed where they are not there, and parts of attention that ranks
  // share are not their share of its time.
  const bool has_times = are_there || sharing == 1;
  run::Recipe measured = recipe;
  if (!are_there) measured.parallel.context = 1;
  Rank rank = connect(rendezvous, recipe.run.device, "run.device", measured);

  const auto available = static_cast<double>(memory_of(rank.device));
  const double own_memory = available / static_cast<double>(rank.device.is_cpu() ? ranks : 1);
  const auto parameters = static_cast<double>(recipe.model.num_parameters());
  const WeightBytes bytes = bytes_of_weight(recipe, ranks);
  const double states = bytes.states() * parameters;
  out << describe(rank.device) << ", " << to_string(recipe.run.dtype) << ", " << gib(available)
      << " GiB of memory";
  if (ranks > 1) {
    out << (rank.device.is_cpu() ? " for all " : " each for ") << ranks << " ranks";
    if (sharing > 1) out << ", of which " << sharing << " share each sequence";
  }
  out << "\n\nparameters " << recipe.model.num_parameters() << "; GiB"
      << (ranks > 1 ? " a rank" : "") << ": weights " << gib(bytes.weights * parameters)
      << ", moments " << gib(bytes.moments * parameters);
  if (bytes.copies > 0) out << ", copies in bfloat16 " << gib(bytes.copies * parameters);
  out << ", gradients " << gib(bytes.gradients * parameters) << "; a checkpoint on the disk "
      << gib(run::checkpoint_bytes(recipe)) << "\n\n";

  Table table{{"stage", "attention", "context", "S", "local", "area", "steps", "ms a step",
               "ktok/s", "time", "activations GiB", "all GiB", "fits"}};
  if (ranks > 1) table[0].insert(table[0].begin() + 3, "sequences a rank");
  double seconds = 0;
  const bool timed = recipe.by_seconds();
  for (const run::StageRecipe& stage : recipe.stages) {
    of_first(launch, std::cerr) << "stage " << stage.name << " ...\n";
    Cost cost = expect(measured, are_there ? stage : share_of(recipe, stage, ranks), rank);
    if (!are_there) {
      cost.memory += (bytes.gradients - bytes_of_weight(recipe, 1).gradients) * parameters;
    }
    const auto or_none = [](int64_t number) { return number == 0 ? "-" : std::to_string(number); };
    const auto if_timed = [&](const std::string& text) { return has_times ? text : "-"; };
    const double area = run::attention_area(stage, recipe.model.num_hidden_layers);
    const double all = states + cost.memory;
    const double steps =
        timed ? std::max(1.0, std::ceil(1e3 * stage.seconds / cost.time)) : stage.length();
    const double stage_seconds = timed ? stage.seconds : cost.time * steps / 1e3;
    seconds += stage_seconds;
    table.push_back({stage.name, std::string(to_string(run::computed_attention(stage))),
                     std::to_string(stage.context), or_none(run::rows_of(stage)),
                     or_none(run::pieces_of(stage)), fixed(100 * area, 1, " %"),
                     timed ? if_timed(fixed(steps, 0)) : fixed(steps, 0),
                     if_timed(fixed(cost.time, 1)),
                     if_timed(fixed(static_cast<double>(stage.tokens_per_step()) / cost.time, 2)),
                     timed ? duration(stage_seconds) : if_timed(duration(stage_seconds)),
                     gib(cost.memory), gib(all), all < own_memory ? "yes" : "NO"});
    if (ranks > 1) {
      const int64_t own = stage.batch / (ranks / sharing);
      table.back().insert(table.back().begin() + 3,
                          message(own, sharing > 1 ? message(", 1/", sharing, " of each") : ""));
    }
  }
  rank.close();
  print_table(out, table, 2);
  if (sharing > 1) {
    out << '\n';
    for (const run::StageRecipe& stage : recipe.stages) {
      const auto [exchange, because] = run::exchange_of(recipe, stage);
      out << "stage " << stage.name << ": exchange " << to_string(exchange) << ", because "
          << because << '\n';
    }
  }
  out << '\n';
  if (has_times || timed) out << "All stages: " << duration(seconds) << ". ";
  out << "Estimated from training steps of models of one and of two layers on this machine. "
         "Activations: all that a step\nallocates at once besides weights, copies and moments. "
         "Evaluations and checkpoints are not included. Local:\ntokens of pieces; area: pairs of "
         "positions that attention compares in a step, as a share of dense attention's.\n";
  if (recipe.data.attention == data::Attention::kWithin) out << kLongDocuments;
  if (!are_there) {
    out << "Memory is that of one rank, without what it holds of others during an exchange; "
        << (has_times ? "times are without exchanges" : "times are not estimated")
        << ". Start plan by a launcher, such as\ntorchrun, to measure both.\n";
  }
  if (std::ranges::any_of(
          recipe.stages, [](const run::StageRecipe& stage) { return run::pieces_of(stage) > 0; })) {
    out << kOnPieces;
  }
}

}  // namespace

void add_plan(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("plan", "Estimate the memory, disk and time that a run will need");
  const auto options = std::make_shared<PlanOptions>();
  options->recipe.add_to(*verb);
  verb->add_option(
          "--ranks", options->ranks,
          "number of ranks to plan for; default: those that a launcher has started, or without one "
          "parallel.context")
      ->check(integer(1));
  verb->callback([options] {
    as_rank([&](distributed::Rendezvous& rendezvous) { plan(*options, rendezvous); });
  });
}

}  // namespace lighthouse::app
