#include "lighthouse/eval/eval.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/lighthouse/as_rank.h"
#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/rank.h"
#include "apps/lighthouse/run.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/data/corpus.h"
#include "lighthouse/data/loader.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::print_table;
using io::Table;
using nlohmann::ordered_json;

struct EvalOptions {
  RunOptions run;
  ParallelOptions parallel;
  std::vector<std::string> data;
  int64_t sequences = 8;
  int64_t cuts = 4;
  std::string device;
  std::string json;
};

ordered_json to_json(const std::vector<eval::Bin>& bins) {
  ordered_json all = ordered_json::array();
  for (const eval::Bin& bin : bins) {
    all.push_back({{"first", bin.first},
                   {"last", bin.last},
                   {"mean", bin.estimate.mean},
                   {"standard_error", bin.estimate.standard_error}});
  }
  return all;
}

std::string cell(const eval::Estimate& estimate, int digits) {
  return fixed(estimate.mean, digits) + " +- " + fixed(estimate.standard_error, digits);
}

void print_bins(std::ostream& out, const char* heading, const std::vector<eval::Bin>& dense,
                const std::vector<eval::Bin>& trained, int digits) {
  Table table{{heading, "dense", "as trained"}};
  for (size_t i = 0; i < dense.size(); ++i) {
    table.push_back({message(dense[i].first, " to ", dense[i].last),
                     cell(dense[i].estimate, digits), cell(trained[i].estimate, digits)});
  }
  print_table(out, table, 1);
}

void eval_run(const EvalOptions& options, distributed::Rendezvous& rendezvous) {
  const distributed::Launch& launch = rendezvous.launch();
  std::ostream& out = of_first(launch, std::cout);
  const Output json(launch.rank == 0 ? options.json : "");
  Run run = open_run(options.run, of_first(launch, std::cerr));
  options.parallel.set(run.recipe, launch);
  if (!options.data.empty()) run.recipe.data.path = options.data;
  const run::Recipe& recipe = run.recipe;
  const auto corpus = data::Corpus::read(recipe.data, data::read_file_list(run.folder.data()));
  check_argument(corpus.fingerprint() == run.checkpoint.corpus,
                 "data.path (--data) does not lead to what the run was trained on: it has the "
                 "fingerprint ",
                 corpus.fingerprint(), ", not ", run.checkpoint.corpus);

  Rank rank = connect(rendezvous, run, options.device,
                      {{"--sequences", std::to_string(options.sequences)},
                       {"--cuts", std::to_string(options.cuts)}});
  const auto model = load_model(run, rank);
  const run::StageRecipe& stage = stage_as_trained(recipe);
  const auto batches = data::held_out_batches(corpus.held_out(), options.sequences, stage.context,
                                              recipe.model.vocab_size, corpus.held_out_ends(),
                                              {stage.documents_per_row, recipe.data.positions});

  const auto loss = [&](bool as_trained) {
    return eval::held_out_loss(*model, batches, as_trained, {}, rank.mesh);
  };
  const eval::HeldOutLoss dense = loss(false);
  const nn::Mode attention = run::computed_attention(stage);
  const bool differs = attention != nn::Mode::kDense;
  const eval::HeldOutLoss trained = differs ? loss(true) : dense;
  const double bytes =
      eval::token_frequency_loss(corpus.train(), corpus.held_out(), recipe.model.vocab_size);
  out << "checkpoint " << run.path.string() << ", " << batches.size() << " held-out sequences of "
      << stage.context << " tokens; as trained: stage " << stage.name << ", "
      << run::attention_name(attention, run::pieces_of(stage)) << "\n\n";
  print_table(out,
              {{"loss on held-out text", "nats per token"},
               {"dense", cell(dense.all, 4)},
               {"as trained", cell(trained.all, 4)},
               {"token frequencies alone", fixed(bytes, 4)}},
              1);
  out << '\n';
  const bool within = recipe.data.attention == data::Attention::kWithin;
  print_bins(out, within ? "loss by position in the document" : "loss by position",
             dense.by_position, trained.by_position, 4);
  std::vector<eval::Bin> leak_dense, leak_trained;
  if (options.cuts > 0) {
    out << "\nleak: rise of the loss before a cut after which all inputs are replaced, nats:\n"
        << std::flush;
    const auto leak = [&](bool as_trained) {
      return eval::selection_leak(*model, batches, options.cuts, recipe.run.seed, as_trained,
                                  rank.mesh);
    };
    leak_dense = leak(false);
    leak_trained = differs ? leak(true) : leak_dense;
    print_bins(out, "distance before the cut", leak_dense, leak_trained, 5);
  }

  rank.close();
  if (!json) return;
  const ordered_json all{{"held_out_dense", dense.all.mean},
                         {"held_out_dense_standard_error", dense.all.standard_error},
                         {"held_out_as_trained", trained.all.mean},
                         {"held_out_as_trained_standard_error", trained.all.standard_error},
                         {"of_sequences_dense", dense.of_sequences},
                         {"of_sequences_as_trained", trained.of_sequences},
                         {"by_position_dense", to_json(dense.by_position)},
                         {"by_position_as_trained", to_json(trained.by_position)},
                         {"token_frequency", bytes},
                         {"leak_dense", to_json(leak_dense)},
                         {"leak_as_trained", to_json(leak_trained)}};
  json.write(all.dump(2) + '\n');
}

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "eval", "Measure a run's loss on held-out text, and how much the selection leaks");
  const auto options = std::make_shared<EvalOptions>();
  options->run.add_to(*verb);
  options->parallel.add_to(*verb);
  verb->add_option("--data", options->data,
                   "where the run's data is now, if not at data.path; repeat it for several paths")
      ->check(not_empty())
      ->allow_extra_args(false);
  verb->add_option("--sequences", options->sequences, "held-out sequences to measure")
      ->check(integer(1))
      ->capture_default_str();
  verb->add_option("--cuts", options->cuts,
                   "cuts per sequence at which the leak is measured; 0: it is not")
      ->check(integer(0))
      ->capture_default_str();
  verb->add_option("--device", options->device, "cpu, cuda or cuda:N; overrides run.device")
      ->check(not_empty());
  verb->add_option("--json", options->json,
                   "also write all figures to this file; - is standard output")
      ->check(output_file());
  verb->callback([options] {
    as_rank([&](distributed::Rendezvous& rendezvous) { eval_run(*options, rendezvous); });
  });
}

}  // namespace lighthouse::app
