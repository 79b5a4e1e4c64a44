#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/lighthouse/as_rank.h"
#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/clock.h"
#include "apps/lighthouse/device.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/rank.h"
#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/trial.h"
#include "apps/lighthouse/verbs/bench.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"
#include "lighthouse/model/token_loss.h"
#include "lighthouse/nn/attention.h"
#include "lighthouse/ops/documents.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/train/device.h"

namespace lighthouse::app {
namespace {

using at::Tensor;
using io::fixed;
using io::print_table;
using io::Table;

struct BenchTrainOptions {
  RecipeOptions recipe;
  int steps = 5;
  std::string json;
};

/// What a training step of a stage takes. Milliseconds; tokens and FLOP are those of all ranks
/// together.
struct StageCost {
  const run::StageRecipe* stage;
  int64_t dense_layers, other_layers;
  Times step = {};
  double waiting = 0;                        ///< for other ranks
  std::map<std::string, double> waits = {};  ///< the same for each kind of exchange
  double attention = 0;                      ///< of all layers, timed alone
  double products = 0;  ///< matrix products of all layers and the output projection, timed alone
  double flops = 0;     ///< of the model, a step
  int64_t peak_bytes = 0;

  double tokens() const { return static_cast<double>(stage->tokens_per_step()); }
  double rest() const { return step.median() - attention - products; }
};

at::TensorOptions options_of(const run::Recipe& recipe, at::Device device) {
  return at::TensorOptions(device).dtype(run::scalar_type(recipe.run.dtype));
}

/// What one rank computes of a step.
struct Share {
  Share(const run::StageRecipe& stage, const distributed::Mesh& mesh)
      : sequences(std::min(stage.sequences_at_once(), stage.batch / mesh.data.size())),
        tokens(stage.context / mesh.context.size()),
        times(static_cast<double>(stage.batch / mesh.data.size()) /
              static_cast<double>(sequences)) {}

  int64_t sequences;  ///< at a time
  int64_t tokens;     ///< of each sequence
  double times;       ///< micro-batches of a step
};

/// The median of five runs after one.
template <class F>
double time_alone(at::Device device, const F& f) {
  Times times;
  Clock clock(device);
  f();
  for (int i = 0; i < 5; ++i) clock.time(times, f);
  clock.settle();
  return times.median();
}

/// Forward and backward of the attention of one layer, of that index where it is not dense.
double time_attention(const run::Recipe& recipe, const run::StageRecipe& stage, nn::Mode mode,
                      int64_t layer, const Rank& rank) {
  const model::ModelConfig& m = recipe.model;
  const Share share(stage, rank.mesh);
  const auto draw = [&](int64_t heads) {
    return at::randn({share.sequences, share.tokens, heads, m.head_dim},
                     options_of(recipe, rank.device))
        .transpose(1, 2);
  };
  const std::vector<Tensor> qkv{draw(m.num_attention_heads), draw(m.num_key_value_heads),
                                draw(m.num_key_value_heads)};
  for (const Tensor& input : qkv) input.set_requires_grad(true);
  const Tensor grad = draw(m.num_attention_heads);
  nn::Attention attention(
      nn::AttentionOptions{.config = stage.config.of_layer(layer),
                           .mode = mode,
                           .context = run::context_of(recipe, stage, rank.mesh.context)});
  const auto starts = ops::given(long_documents(stage, share.sequences, rank.device));
  const double once = time_alone(rank.device, [&] {
    const Tensor out = attention->forward(qkv[0], qkv[1], qkv[2], starts);
    return torch::autograd::grad({out}, qkv, {grad});
  });
  return once * share.times;
}

/// The three products of a projection of `rows` rows: forward, and for both gradients.
double time_projection(int64_t rows, int64_t in, int64_t out, const at::TensorOptions& options) {
  const Tensor x = at::randn({rows, in}, options), weight = at::randn({out, in}, options);
  const Tensor grad = at::randn({rows, out}, options);
  return time_alone(options.device(), [&] {
    at::mm(x, weight.t());
    at::mm(grad, weight);
    return at::mm(grad.t(), x);
  });
}

double time_products(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank) {
  const model::ModelConfig& m = recipe.model;
  const auto options = options_of(recipe, rank.device);
  const Share share(stage, rank.mesh);
  const int64_t rows = share.sequences * share.tokens;
  const int64_t heads = (m.num_attention_heads + 2 * m.num_key_value_heads) * m.head_dim;
  const double layer =
      time_projection(rows, m.hidden_size, heads, options) +
      time_projection(rows, m.num_attention_heads * m.head_dim, m.hidden_size, options) +
      time_projection(rows, m.hidden_size, 2 * m.intermediate_size, options) +
      time_projection(rows, m.intermediate_size, m.hidden_size, options);
  // Logits are formed a chunk at a time, and once more in the backward pass.
  const int64_t chunk = std::min(rows, model::positions_at_once(m.vocab_size, rank.device));
  const double logits = time_projection(chunk, m.hidden_size, m.vocab_size, options) * 4 / 3 *
                        static_cast<double>(rows) / static_cast<double>(chunk);
  return (static_cast<double>(m.num_hidden_layers) * layer + logits) * share.times;
}

/// 6 a weight of a matrix and token, and 12 H D a pair of positions that attention compares.
double model_flops(const run::Recipe& recipe, const StageCost& row) {
  const model::ModelConfig& m = recipe.model;
  const auto weights = static_cast<double>(
      m.num_parameters() - (m.tie_word_embeddings ? 0 : m.vocab_size * m.hidden_size));
  const auto tokens = static_cast<double>(row.stage->context);
  const double attended = run::attention_area(*row.stage, m.num_hidden_layers) *
                          static_cast<double>(m.num_hidden_layers) * tokens * tokens / 2;
  return 6 * weights * row.tokens() +
         12 * attended * static_cast<double>(row.stage->batch * m.num_attention_heads * m.head_dim);
}

StageCost measure(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank,
                  int steps) {
  const int64_t layers = recipe.model.num_hidden_layers;
  const int64_t dense = run::count_dense_layers(stage, layers);
  StageCost row{.stage = &stage, .dense_layers = dense, .other_layers = layers - dense};
  const Trial trial = run_trial(recipe, stage, rank, steps);
  row.step = trial.step;
  row.waiting = trial.waiting;
  row.waits = trial.waits;
  row.peak_bytes = trial.peak_bytes;
  row.products = time_products(recipe, stage, rank);
  const auto time = [&](nn::Mode mode, int64_t layer) {
    return time_attention(recipe, stage, mode, layer, rank);
  };
  if (dense > 0) row.attention = static_cast<double>(dense) * time(nn::Mode::kDense, 0);
  if (dense < layers) {
    const nn::Mode mode = run::computed_attention(stage);
    double each = time(mode, 0);
    // Layers of odd index have other pieces.
    if (run::pieces_of(stage) > 0 && layers > 1) each = (each + time(mode, 1)) / 2;
    row.attention += static_cast<double>(row.other_layers) * each;
  }
  row.flops = model_flops(recipe, row);
  return row;
}

std::string name_of(const run::StageRecipe& stage) {
  return run::attention_name(run::computed_attention(stage), run::pieces_of(stage));
}

void print(std::ostream& out, const std::vector<StageCost>& rows, const Rank& rank) {
  const bool has_others = rank.world.size() > 1;
  Table table{{"stage", "attention", "context", "S", "area", "layers", "ktok/s", "ms a step",
               "TFLOP/s", "peak GiB", "attention", "products", "rest"}};
  if (has_others) table[0].emplace_back("waiting");
  for (const StageCost& row : rows) {
    const auto part = [&](double milliseconds) {
      return fixed(milliseconds, 1) + " (" + fixed(100 * milliseconds / row.step.median(), 0) +
             " %)";
    };
    const int64_t gathered = run::rows_of(*row.stage);
    table.push_back(
        {row.stage->name, name_of(*row.stage), std::to_string(row.stage->context),
         gathered == 0 ? "-" : std::to_string(gathered),
         fixed(100 * run::attention_area(*row.stage, row.dense_layers + row.other_layers), 1, " %"),
         message(row.other_layers, " + ", row.dense_layers, " dense"),
         fixed(row.tokens() / row.step.median(), 2),
         message(fixed(row.step.median(), 1), " (", fixed(row.step.lowest(), 1), "-",
                 fixed(row.step.highest(), 1), ")"),
         fixed(row.flops / row.step.median() / 1e9, 1),
         fixed(static_cast<double>(row.peak_bytes) / (1 << 30), 2), part(row.attention),
         part(row.products), part(row.rest())});
    if (has_others) table.back().push_back(part(row.waiting));
  }
  print_table(out, table, 2);
  out << "\nMilliseconds: median (lowest-highest). Attention and matrix products of all layers are "
         "timed alone, forward and\nbackward; rest is the remainder of the step. FLOP of the "
         "model: 6 per weight of a matrix and token, and 12 H D per\npair of positions that causal "
         "attention compares: N^2/2 in a dense layer, else S^2/2, N W/2 in pieces, or both. Area: "
         "these\npairs, as a share of those of dense attention.\n";
  if (std::ranges::any_of(rows,
                          [](const StageCost& row) { return row.stage->documents_per_row > 0; })) {
    out << kLongDocuments;
  }
  if (has_others) {
    out << "ktok/s and TFLOP/s are those of all ranks together; ms a step and peak GiB those of "
           "the rank that has the most. Waiting:\nhow long a rank's GPU (or CPU) does nothing but "
           "wait "
           "for an exchange or a slower rank, which is part of attention and rest.\n";
  }
  if (std::ranges::any_of(rows, [](const StageCost& row) { return row.rest() < 0; })) {
    out << "A negative rest means that the parts ran slower alone than in the step (small "
           "kernels wait for the CPU; the GPU runs at other clocks).\n";
  }
}

void bench_train(const BenchTrainOptions& options, distributed::Rendezvous& rendezvous) {
  const distributed::Launch& launch = rendezvous.launch();
  std::ostream& out = of_first(launch, std::cout);
  const Output json(launch.rank == 0 ? options.json : "");
  const run::Recipe recipe = options.recipe.read();
  run::check_ranks(recipe, launch.size);
  Rank rank = connect(rendezvous, recipe.run.device, "run.device", recipe);
  train::use_deterministic_algorithms(recipe.run.deterministic);
  const std::string title =
      message(describe(rank.device), ", ", ranks_of(rank), to_string(recipe.run.dtype),
              recipe.run.deterministic ? ", deterministic" : "",
              recipe.run.recompute_mlp ? ", MLPs recomputed" : "",
              recipe.run.recompute_layers ? ", layers recomputed" : "",
              recipe.run.cuda_graphs ? ", CUDA graphs" : "", ", ", recipe.model.num_parameters(),
              " parameters, ", options.steps, " steps after 2");
  out << title << "\n\n";
  std::vector<StageCost> rows;
  for (const run::StageRecipe& stage : recipe.stages) {
    of_first(launch, std::cerr) << "stage " << stage.name << " ...\n";
    rows.push_back(measure(recipe, stage, rank, options.steps));
  }
  print(out, rows, rank);
  nlohmann::ordered_json all{{"title", title},
                             {"ranks", rank.world.size()},
                             {"context_ranks", rank.mesh.context.size()},
                             {"rows", nlohmann::ordered_json::array()}};
  for (const StageCost& row : rows) {
    all["rows"].push_back({{"stage", row.stage->name},
                           {"attention", to_string(run::computed_attention(*row.stage))},
                           {"context", row.stage->context},
                           {"rows", run::rows_of(*row.stage)},
                           {"local", run::pieces_of(*row.stage)},
                           {"step", row.step.json()},
                           {"tokens_per_second", 1e3 * row.tokens() / row.step.median()},
                           {"model_flops", row.flops},
                           {"peak_bytes", row.peak_bytes},
                           {"attention_ms", row.attention},
                           {"products_ms", row.products}});
    if (rank.world.size() == 1) continue;
    all["rows"].back()["waiting_ms"] = row.waiting;
    all["rows"].back()["waits_ms"] = row.waits;
    if (rank.mesh.context.size() == 1) continue;
    all["rows"].back()["exchange"] = to_string(run::exchange_of(recipe, *row.stage).exchange);
  }
  rank.close();
  if (json) json.write(all.dump(2) + '\n');
}

}  // namespace

void add_bench_train(CLI::App& bench) {
  CLI::App* verb = bench.add_subcommand(
      "train",
      "Time training steps of each stage of a recipe on random tokens, as a whole and by part");
  const auto options = std::make_shared<BenchTrainOptions>();
  options->recipe.add_to(*verb);
  verb->add_option("--steps", options->steps, "timed steps per stage")
      ->check(integer(1))
      ->capture_default_str();
  verb->add_option("--json", options->json,
                   "also write all figures to this file; - is standard output")
      ->check(output_file());
  verb->callback([options] {
    as_rank([&](distributed::Rendezvous& rendezvous) { bench_train(*options, rendezvous); });
  });
}

}  // namespace lighthouse::app
