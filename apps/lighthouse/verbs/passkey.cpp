#include "lighthouse/eval/passkey.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "apps/lighthouse/as_rank.h"
#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/picture.h"
#include "apps/lighthouse/rank.h"
#include "apps/lighthouse/run.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::print_table;
using io::Table;

struct PasskeyOptions {
  RunOptions run;
  ParallelOptions parallel;
  std::vector<int64_t> contexts;
  std::vector<double> depths{0, 15, 30, 50, 70, 85, 100};  ///< per cent
  int64_t trials = 10;
  uint64_t seed = 0;
  bool as_trained = false;
  std::string device;
  std::string picture;
  std::string json;
};

constexpr int64_t kShortest = 64;  ///< has room for question and key

/// An eighth of the longest context of the run's stages, a quarter, half, and all of it.
std::vector<int64_t> default_contexts(const run::Recipe& recipe) {
  int64_t longest = 0;
  for (const run::StageRecipe& stage : recipe.stages) longest = std::max(longest, stage.context);
  std::vector<int64_t> contexts{longest / 8, longest / 4, longest / 2, longest};
  std::erase_if(contexts, [&](int64_t context) { return context < kShortest; });
  return contexts.empty() ? std::vector{kShortest} : contexts;
}

void passkey(const PasskeyOptions& options, distributed::Rendezvous& rendezvous) {
  const distributed::Launch& launch = rendezvous.launch();
  std::ostream& out = of_first(launch, std::cout);
  const bool is_first = launch.rank == 0;
  const Output json(is_first ? options.json : ""), picture(is_first ? options.picture : "");
  Run run = open_run(options.run, of_first(launch, std::cerr));
  options.parallel.set(run.recipe, launch);
  const nlohmann::json contexts_and_depths{options.contexts, options.depths};
  Rank rank = connect(rendezvous, run, options.device,
                      {{"--contexts and --depths", contexts_and_depths.dump()},
                       {"--trials", std::to_string(options.trials)},
                       {"--seed", std::to_string(options.seed)},
                       {"--as-trained", options.as_trained ? "given" : "not given"}});
  const auto model = load_model(run, rank);
  const std::vector<int64_t> contexts =
      options.contexts.empty() ? default_contexts(run.recipe) : options.contexts;
  const int64_t sharing = rank.mesh.context.size();
  for (const int64_t context : contexts) {
    eval::passkey_prompt({context, 0, 1}, 0);  // or it throws
    check_argument(sharing == 1 || context % (2 * sharing) == 0, "--contexts has ", context, "; ",
                   sharing, " ranks share each prompt (--parallel-context), so it must be a ",
                   "multiple of ", 2 * sharing);
  }
  out << "checkpoint " << run.path.string() << ", " << (options.as_trained ? "as trained" : "dense")
      << ", " << options.trials << " trials a cell, seed " << options.seed
      << "; chance is 10 %\n\n";

  Table table{{"context"}};
  for (const double depth : options.depths) table[0].push_back(fixed(depth, 0, " %"));
  table[0].emplace_back("all");
  nlohmann::ordered_json cells = nlohmann::ordered_json::array();
  int64_t found = 0;
  for (const int64_t context : contexts) {
    of_first(launch, std::cerr) << "context " << context << " ...\n";
    std::vector<std::string> row{std::to_string(context)};
    int64_t of_context = 0;
    for (const double depth : options.depths) {
      const eval::PasskeyTask task{context, depth / 100, options.trials, options.seed};
      const int64_t of_cell = eval::passkeys_found(*model, task, options.as_trained, rank.mesh);
      of_context += of_cell;
      row.push_back(message(of_cell, "/", options.trials));
      cells.push_back({{"context", context}, {"depth", depth}, {"found", of_cell}});
    }
    const auto tried = static_cast<int64_t>(options.depths.size()) * options.trials;
    row.push_back(message(of_context, "/", tried));
    table.push_back(row);
    found += of_context;
  }
  print_table(out, table);
  const double all = static_cast<double>(cells.size()) * static_cast<double>(options.trials);
  const double share = static_cast<double>(found) / all;
  out << "\npasskeys found: " << fixed(100 * share, 1) << " % +- "
      << fixed(100 * std::sqrt(share * (1 - share) / all), 1) << " % of " << fixed(all, 0) << '\n';
  rank.close();

  const nlohmann::ordered_json all_figures{{"as_trained", options.as_trained},
                                           {"seed", options.seed},
                                           {"trials", options.trials},
                                           {"share", share},
                                           {"cells", cells}};
  const std::string figures = all_figures.dump(2) + '\n';
  if (json) json.write(figures);
  if (picture) picture.write(draw(options.picture, {"-"}, figures));
}

}  // namespace

void add_passkey(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "passkey", "Hide a digit in long prompts and ask a run's byte-level model for it");
  const auto options = std::make_shared<PasskeyOptions>();
  options->run.add_to(*verb);
  options->parallel.add_to(*verb);
  verb->add_option("--contexts", options->contexts,
                   "prompt lengths in tokens; default: 1/8, 1/4, 1/2 and all of the run's longest "
                   "context")
      ->delimiter(',')
      ->check(integer(1));
  verb->add_option("--depths", options->depths,
                   "where in the prompt the digit is hidden, in per cent")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  verb->add_option("--trials", options->trials, "prompts per context and depth")
      ->check(integer(1))
      ->capture_default_str();
  verb->add_option("--seed", options->seed, "seed of the prompts")
      ->check(integer(0))
      ->capture_default_str();
  verb->add_flag("--as-trained", options->as_trained,
                 "use the attention of the last Lighthouse stage instead of dense attention");
  verb->add_option("--device", options->device, "cpu, cuda or cuda:N; overrides run.device")
      ->check(not_empty());
  verb->add_option("--json", options->json,
                   "also write all figures to this file; - is standard output")
      ->check(output_file());
  verb->add_option("--plot", options->picture,
                   "also draw a heat map; a .png, .svg or .pdf file, - is standard output")
      ->check(picture_file());
  verb->callback([options] {
    as_rank([&](distributed::Rendezvous& rendezvous) { passkey(*options, rendezvous); });
  });
}

}  // namespace lighthouse::app
