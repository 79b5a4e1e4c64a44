#include <cmath>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/curves.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/json.h"
#include "lighthouse/io/table.h"
#include "lighthouse/train/run_folder.h"
#include "lighthouse/train/summary.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::number;
using io::print_table;
using io::Table;
using nlohmann::json;

json read_json(const std::filesystem::path& file) {
  try {
    return json::parse(io::read_file(file));
  } catch (const json::exception& error) {
    throw std::invalid_argument(message("'", file.string(), "' is not valid JSON: ", error.what()));
  }
}

train::Summary summary_of(const std::filesystem::path& folder) {
  const std::filesystem::path file = train::RunFolder(folder).summary();
  check_argument(exists(file), "RUN is '", folder.string(),
                 "', which has no summary.json; it must be a finished run");
  return train::read_summary(file);
}

/// A run's files, as `lighthouse train` and `lighthouse eval` leave them.
struct Run {
  const RunMetrics& metrics;
  train::Summary summary;
  json evaluation;  ///< of `lighthouse eval --json RUN/eval.json`; null where there is none

  Run(const RunMetrics& measured, const std::filesystem::path& folder)
      : metrics(measured), summary(summary_of(folder)) {
    if (exists(folder / "eval.json")) evaluation = read_json(folder / "eval.json");
  }
};

void print_stages(const std::vector<Run>& runs) {
  Table table{{"run", "stage", "attention", "steps", "time", "tokens/s", "dense before",
               "dense after", "as trained before", "as trained after"}};
  for (const Run& run : runs) {
    for (const train::StageSummary& stage : run.summary.stages) {
      table.push_back({run.metrics.name, stage.name, stage.attention, std::to_string(stage.steps),
                       fixed(stage.seconds, 0, " s"), fixed(stage.tokens_per_second, 0),
                       fixed(stage.dense_loss_before, 3), fixed(stage.dense_loss_after, 3),
                       fixed(stage.trained_loss_before, 3), fixed(stage.trained_loss_after, 3)});
    }
  }
  std::cout << "Stages. Losses are held-out, nats per token, with dense attention and as the stage "
               "trains:\n";
  print_table(std::cout, table, 3);
}

/// The rise of the loss just before a cut, with its standard error.
std::string leak(const Run& run, const char* field) {
  if (run.evaluation.is_null()) return "-";
  const json& nearest = run.evaluation.at(field).at(0);
  const auto mean = number(nearest.at("mean"));
  const auto error = number(nearest.at("standard_error"));
  return mean == 0 && error == 0 ? "0" : message(fixed(mean, 3), " +- ", fixed(error, 3));
}

void print_runs(const std::vector<Run>& runs) {
  const Run& first = runs.front();
  Table table{{"run", "time", "tokens/s", "speed-up", "held-out loss", "token frequencies",
               "leak, dense", "leak, as trained"}};
  for (const Run& run : runs) {
    table.push_back({run.metrics.name, fixed(run.summary.seconds(), 0, " s"),
                     fixed(run.summary.tokens() / run.summary.seconds(), 0),
                     fixed(first.summary.seconds() / run.summary.seconds(), 2, "x"),
                     fixed(run.summary.final_loss(), 3), fixed(run.summary.token_frequency_loss, 3),
                     leak(run, "leak_dense"), leak(run, "leak_as_trained")});
  }
  std::cout
      << "\nRuns. Held-out loss at the end, with dense attention; leak: what it rises by just "
         "before a cut after which all inputs are replaced:\n";
  print_table(std::cout, table, 1);
}

/// The held-out loss that a run had after that many seconds, with dense attention: on the line
/// between the evaluations around it; NaN where there is none on one side.
double loss_at(const Run& run, double seconds) {
  const std::vector<train::EvalMetrics>& evals = run.metrics.history.evals;
  for (size_t i = 1; i < evals.size(); ++i) {
    const double before = evals[i - 1].seconds, after = evals[i].seconds;
    if (seconds < before || seconds > after || before == after) continue;
    const double share = (seconds - before) / (after - before);
    return (1 - share) * evals[i - 1].dense_loss + share * evals[i].dense_loss;
  }
  return std::nan("");
}

/// Says in words which run is better: no figure is left to the reader's goodwill.
void print_verdict(const std::vector<Run>& runs) {
  const Run& first = runs.front();
  std::cout << '\n';
  for (size_t i = 1; i < runs.size(); ++i) {
    const Run& run = runs[i];
    const double loss = run.summary.final_loss(), other = first.summary.final_loss();
    const double difference = loss - other;
    std::cout << run.metrics.name << " took "
              << fixed(100 * run.summary.seconds() / first.summary.seconds(), 0, " %")
              << " of the time of " << first.metrics.name << " for "
              << fixed(100 * run.summary.tokens() / first.summary.tokens(), 0, " %")
              << " of its tokens, and ends with a held-out loss ";
    if (std::isnan(loss)) {
      std::cout << "that is not a number: " << (std::isnan(other) ? "neither" : first.metrics.name)
                << " is better.";
    } else if (std::isnan(other)) {
      std::cout << "of " << fixed(loss, 3) << ", where that of " << first.metrics.name
                << " is not a number: " << run.metrics.name << " is better.";
    } else if (std::abs(difference) < 0.0005) {
      std::cout << "that is the same to three digits.";
    } else {
      std::cout << fixed(std::abs(difference), 3, " nats ") << (difference > 0 ? "higher" : "lower")
                << ": " << (difference > 0 ? first.metrics.name : run.metrics.name)
                << " is better after all steps.";
    }
    const double then = loss_at(first, run.summary.seconds());
    if (run.summary.seconds() < first.summary.seconds() && std::isfinite(then)) {
      std::cout << " After the same time " << first.metrics.name << " stood at about "
                << fixed(then, 3) << ", still on its way: its learning rate falls with the steps.";
    }
    std::cout << '\n';
  }
}

void compare(const std::vector<std::string>& folders, const std::string& file) {
  const Output picture(file);
  const std::vector<RunMetrics> curves = read_run_metrics(folders);
  std::vector<Run> runs;
  runs.reserve(folders.size());
  for (size_t i = 0; i < folders.size(); ++i) runs.emplace_back(curves[i], folders[i]);
  print_stages(runs);
  print_runs(runs);
  print_verdict(runs);
  if (!picture) return;
  picture.write(picture_of(curves));
  std::cout << "\nCurves: " << picture.name() << '\n';
}

}  // namespace

void add_compare(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "compare", "Compare finished runs: time, loss, leak, and a picture of their curves");
  const auto folders = std::make_shared<std::vector<std::string>>();
  const auto picture = std::make_shared<std::string>();
  verb->add_option("RUN", *folders, "run folders; the others are compared with the first")
      ->check(not_empty())
      ->required()
      ->expected(1, -1);
  verb->add_option("--svg", *picture, "write the picture that `lighthouse plot` makes to this file")
      ->check(output_file());
  verb->callback([=] { compare(*folders, *picture); });
}

}  // namespace lighthouse::app
