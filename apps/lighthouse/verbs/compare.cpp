#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/picture.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/eval/eval.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/json.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/run/summary.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::number;
using io::print_table;
using io::Table;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

nlohmann::json read_json(const fs::path& file) {
  try {
    return nlohmann::json::parse(io::read_file(file));
  } catch (const nlohmann::json::exception& error) {
    throw std::invalid_argument(message("'", file.string(), "' is not valid JSON: ", error.what()));
  }
}

run::Summary summary_of(const fs::path& folder) {
  const fs::path file = run::RunFolder(folder).summary();
  check_argument(exists(file), "RUN is '", folder.string(),
                 "', which has no summary.json; it must be a finished run");
  return run::read_summary(file);
}

/// A run's files, as `lighthouse train` and `lighthouse eval` leave them.
struct FinishedRun {
  std::string name;
  run::Summary summary;
  std::vector<run::EvalMetrics> evals;
  /// Of `lighthouse eval --json RUN/eval.json`; null where there is none.
  nlohmann::json evaluation;

  explicit FinishedRun(const fs::path& folder)
      : name(run::RunFolder(folder).name()),
        summary(summary_of(folder)),
        evals(run::read_metrics(run::RunFolder(folder).metrics()).evals) {
    if (exists(folder / "eval.json")) evaluation = read_json(folder / "eval.json");
  }
};

/// Runs are called by their folders; where two folders have one name, by their paths.
std::vector<FinishedRun> read_runs(const std::vector<std::string>& folders) {
  std::vector<FinishedRun> runs;
  std::map<std::string, int> named;
  for (const std::string& folder : folders) ++named[runs.emplace_back(folder).name];
  for (size_t i = 0; i < runs.size(); ++i) {
    if (named[runs[i].name] > 1) runs[i].name = folders[i];
  }
  return runs;
}

void print_stages(const std::vector<FinishedRun>& runs) {
  Table table{{"run", "stage", "attention", "steps", "time", "tokens/s", "dense before",
               "dense after", "brought", "as trained before", "as trained after"}};
  for (const FinishedRun& run : runs) {
    for (const run::StageSummary& stage : run.summary.stages) {
      table.push_back({run.name, stage.name, run::attention_name(stage.attention, stage.local),
                       std::to_string(stage.steps), fixed(stage.seconds, 0, " s"),
                       fixed(stage.tokens_per_second, 0), fixed(stage.dense_loss_before, 3),
                       fixed(stage.dense_loss_after, 3),
                       fixed(stage.dense_loss_after - stage.dense_loss_before, 3),
                       fixed(stage.trained_loss_before, 3), fixed(stage.trained_loss_after, 3)});
    }
  }
  std::cout << "Stages. Losses are held-out, nats per token, with dense attention and as the stage "
               "trains; brought: what the stage added to the dense loss:\n";
  print_table(std::cout, table, 3);
}

/// The rise of the loss just before a cut, with its standard error; null where there is none.
nlohmann::json nearest_leak(const FinishedRun& run, const char* field) {
  if (run.evaluation.is_null() || run.evaluation.at(field).empty()) return {};
  return run.evaluation.at(field).at(0);
}

std::string leak(const FinishedRun& run, const char* field) {
  const nlohmann::json nearest = nearest_leak(run, field);
  if (nearest.is_null()) return "-";
  const auto mean = number(nearest.at("mean"));
  const auto error = number(nearest.at("standard_error"));
  return mean == 0 && error == 0 ? "0" : message(fixed(mean, 3), " +- ", fixed(error, 3));
}

void print_runs(const std::vector<FinishedRun>& runs) {
  const FinishedRun& first = runs.front();
  Table table{{"run", "time", "tokens/s", "speed-up", "held-out loss", "token frequencies",
               "leak, dense", "leak, as trained"}};
  for (const FinishedRun& run : runs) {
    table.push_back({run.name, fixed(run.summary.seconds(), 0, " s"),
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
double loss_at(const FinishedRun& run, double seconds) {
  const std::vector<run::EvalMetrics>& evals = run.evals;
  for (size_t i = 1; i < evals.size(); ++i) {
    const double before = evals[i - 1].seconds, after = evals[i].seconds;
    if (seconds < before || seconds > after || before == after) continue;
    const double share = (seconds - before) / (after - before);
    return (1 - share) * evals[i - 1].dense_loss + share * evals[i].dense_loss;
  }
  return std::nan("");
}

/// How much higher the loss of `run` is than that of `other` on the same held-out sequences, with
/// the standard error of the pairs; NaN where `lighthouse eval` has not measured both on two or
/// more.
eval::Estimate paired_difference(const FinishedRun& run, const FinishedRun& other) {
  const auto losses = [](const FinishedRun& of) {
    return of.evaluation.is_null()
               ? nlohmann::json::array()
               : of.evaluation.value("of_sequences_dense", nlohmann::json::array());
  };
  const nlohmann::json ours = losses(run), theirs = losses(other);
  const auto count = static_cast<double>(ours.size());
  if (ours.size() < 2 || ours.size() != theirs.size()) return {std::nan(""), std::nan("")};
  double sum = 0, squares = 0;
  for (size_t i = 0; i < ours.size(); ++i) sum += number(ours[i]) - number(theirs[i]);
  const double mean = sum / count;
  for (size_t i = 0; i < ours.size(); ++i) {
    squares += std::pow(number(ours[i]) - number(theirs[i]) - mean, 2);
  }
  return {mean, std::sqrt(squares / (count - 1) / count)};
}

/// Says in words which run is better: no figure is left to the reader's goodwill. Where both were
/// measured on the same sequences, a difference below two standard errors is none.
void print_verdict(const std::vector<FinishedRun>& runs) {
  const FinishedRun& first = runs.front();
  std::cout << '\n';
  for (size_t i = 1; i < runs.size(); ++i) {
    const FinishedRun& run = runs[i];
    const double loss = run.summary.final_loss(), other = first.summary.final_loss();
    const double difference = loss - other;
    std::cout << run.name << " took "
              << fixed(100 * run.summary.seconds() / first.summary.seconds(), 0, " %")
              << " of the time of " << first.name << " for "
              << fixed(100 * run.summary.tokens() / first.summary.tokens(), 0, " %")
              << " of its tokens, and ends with a held-out loss ";
    if (std::isnan(loss)) {
      std::cout << "that is not a number: " << (std::isnan(other) ? "neither" : first.name)
                << " is better.";
    } else if (std::isnan(other)) {
      std::cout << "of " << fixed(loss, 3) << ", where that of " << first.name
                << " is not a number: " << run.name << " is better.";
    } else if (std::abs(difference) < 0.0005) {
      std::cout << "that is the same to three digits.";
    } else {
      std::cout << fixed(std::abs(difference), 3, " nats ")
                << (difference > 0 ? "higher" : "lower");
      const eval::Estimate paired = paired_difference(run, first);
      if (std::isfinite(paired.standard_error)) {
        std::cout << " (" << fixed(paired.mean, 3) << " +- " << fixed(paired.standard_error, 3)
                  << " over the sequences of eval)";
      }
      if (std::abs(paired.mean) < 2 * paired.standard_error) {
        std::cout << ": these sequences cannot tell which is better.";
      } else {
        const double higher = std::isnan(paired.mean) ? difference : paired.mean;
        std::cout << ": " << (higher > 0 ? first.name : run.name) << " is better at the end.";
      }
    }
    const double then = loss_at(first, run.summary.seconds());
    if (run.summary.seconds() < first.summary.seconds() && std::isfinite(then)) {
      std::cout << " After the same time " << first.name << " stood at about " << fixed(then, 3)
                << ", still on its way: its learning rate had yet to fall.";
    }
    std::cout << '\n';
  }
}

/// All of it, for other programs and for the picture.
std::string to_json(const std::vector<FinishedRun>& runs) {
  ordered_json all = ordered_json::array();
  for (const FinishedRun& run : runs) {
    const double seconds = run.summary.seconds();
    ordered_json figures{{"name", run.name},
                         {"seconds", seconds},
                         {"tokens", run.summary.tokens()},
                         {"tokens_per_second", run.summary.tokens() / seconds},
                         {"speed_up", runs.front().summary.seconds() / seconds},
                         {"dense_loss", run.summary.final_loss()}};
    figures.update(ordered_json::parse(run::to_json(run.summary)));
    figures["evals"] = ordered_json::array();
    for (const run::EvalMetrics& eval : run.evals) {
      figures["evals"].push_back(ordered_json::parse(run::to_line(eval)));
    }
    for (const char* field : {"leak_dense", "leak_as_trained"}) {
      figures[field] = nearest_leak(run, field);
    }
    all.push_back(figures);
  }
  return ordered_json{{"runs", all}}.dump(2) + '\n';
}

struct CompareOptions {
  std::vector<std::string> runs;
  std::string json;
  std::string picture;
};

void compare(const CompareOptions& options) {
  const Output json_file(options.json), picture(options.picture);
  const std::vector<FinishedRun> runs = read_runs(options.runs);
  print_stages(runs);
  print_runs(runs);
  print_verdict(runs);
  const std::string figures = to_json(runs);
  if (json_file) json_file.write(figures);
  if (!picture) return;
  picture.write(draw(options.picture, {"-"}, figures));
  std::cout << "\npicture: " << picture.name() << '\n';
}

}  // namespace

void add_compare(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("compare", "Compare finished runs: time, loss, leak");
  const auto options = std::make_shared<CompareOptions>();
  verb->add_option("RUN", options->runs, "run folders; the others are compared with the first")
      ->check(not_empty())
      ->required()
      ->expected(1, -1);
  verb->add_option("--json", options->json,
                   "also write all figures to this file; - is standard output")
      ->check(output_file());
  verb->add_option("--plot", options->picture,
                   "also draw losses, times and leak; a .png, .svg or .pdf file")
      ->check(picture_file());
  verb->callback([options] { compare(*options); });
}

}  // namespace lighthouse::app
