#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/recipe_options.h"
#include "apps/lighthouse/terminal.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/distributed/launch.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/run/summary.h"
#include "lighthouse/train/stop_signals.h"
#include "lighthouse/train/train.h"

namespace lighthouse::app {
namespace {

using io::fixed;
using io::print_table;
using io::Table;

namespace fs = std::filesystem;

struct SweepOptions {
  RecipeOptions recipe;
  std::vector<std::string> vary;
  std::string out;
  bool dry_run = false;
};

/// "key=a,b,c": what a recipe's key is to be, in turn.
struct Axis {
  std::string key;
  std::vector<std::string> values;

  explicit Axis(const std::string& text) : key(text.substr(0, text.find('='))) {
    check_argument(key.size() < text.size(), "--vary is '", text,
                   "'; it must be KEY=A,B,..., like optimizer.lr=1e-3,2e-3");
    check_argument(key != "run.out", "--vary is '", text,
                   "'; run.out cannot be varied, every run has its own folder in --out");
    values.emplace_back();
    int depth = 0;  // a comma within [] is one of a list
    for (const char c : text.substr(key.size() + 1)) {
      depth += static_cast<int>(c == '[') - static_cast<int>(c == ']');
      if (c == ',' && depth == 0) {
        values.emplace_back();
      } else {
        values.back() += c;
      }
    }
    check_argument(depth == 0, "--vary is '", text, "', whose brackets do not match");
    for (const std::string& value : values) {
      check_argument(!value.empty(), "--vary is '", text, "', which has an empty value");
    }
  }
};

/// A run of the grid.
struct Point {
  std::vector<std::string> values;  ///< of the axes
  std::string name;                 ///< of its folder
  run::Recipe recipe;
};

/// A name that a file system takes, and a reader too.
std::string folder_name(const std::vector<Axis>& axes, const std::vector<std::string>& values) {
  std::string name;
  for (size_t i = 0; i < axes.size(); ++i) {
    name += (i == 0 ? "" : "_") + axes[i].key + '=' + values[i];
  }
  std::ranges::replace(name, '/', '-');
  return name;
}

/// Folders move.
std::string without_folder(run::Recipe recipe) {
  recipe.run.out.clear();
  return recipe.to_toml();
}

/// Every combination of the axes' values, the last axis fastest. All recipes are read before the
/// first run begins.
std::vector<Point> grid(const SweepOptions& options, const std::vector<Axis>& axes) {
  std::vector<Point> points(1);
  std::set<std::string> names;
  std::map<std::string, std::string> recipes;
  for (const Axis& axis : axes) {
    std::vector<Point> longer;
    for (const Point& point : points) {
      for (const std::string& value : axis.values) {
        longer.push_back(point);
        longer.back().values.push_back(value);
      }
    }
    points = std::move(longer);
  }
  for (Point& point : points) {
    RecipeOptions recipe = options.recipe;
    for (size_t i = 0; i < axes.size(); ++i) {
      recipe.overrides.push_back(axes[i].key + '=' + point.values[i]);
    }
    point.name = folder_name(axes, point.values);
    point.recipe = recipe.read();
    point.recipe.run.out = (fs::path(options.out) / point.name).string();
    check_argument(names.insert(point.name).second,
                   "two runs of the grid would have the same folder, '", point.name,
                   "'; values must not repeat");
    const auto [same, is_new] = recipes.emplace(without_folder(point.recipe), point.name);
    check_argument(is_new, "the runs '", same->second, "' and '", point.name,
                   "' have the same recipe; they must differ");
  }
  return points;
}

/// What a run came to; nothing where it has not ended.
std::optional<run::Summary> summary_of(const Point& point) {
  const run::RunFolder folder(point.recipe.run.out);
  if (!fs::exists(folder.summary())) return {};
  const run::Recipe trained = run::Recipe::read(folder.recipe());
  check_argument(without_folder(trained) == without_folder(point.recipe), "the run in '",
                 folder.path().string(),
                 "' has another recipe; choose another --out, or remove that run");
  return run::read_summary(folder.summary());
}

/// Trains what is not there yet. Returns what went wrong; throws CLI::RuntimeError where a signal
/// ended it.
std::string train_point(const Point& point) {
  const run::RunFolder folder(point.recipe.run.out);
  train::Start start;
  start.resume = fs::exists(folder.path());
  std::string failure;
  int signal = 0;
  try {
    signal = train::train(point.recipe, start, std::cout, is_terminal());
  } catch (const c10::Error& error) {
    failure = error.what_without_backtrace();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  // One that came after the last evaluation has let the run end, or fail.
  if (signal == 0) signal = train::StopSignals::received();
  if (signal != 0) {
    if (!failure.empty()) std::cout << "FAILED: " << failure << '\n';
    std::cout << "stopped; the same command resumes\n";
    throw CLI::RuntimeError(128 + signal);
  }
  return failure;
}

void sweep(const SweepOptions& options) {
  const int64_t processes = distributed::read_launch(std::getenv).size;
  check_argument(processes == 1, "sweep was started in ", processes,
                 " processes; it runs in one: leave out torchrun, srun or mpirun");
  const std::vector<Axis> axes(options.vary.begin(), options.vary.end());
  std::set<std::string> keys;
  for (const Axis& axis : axes) {
    check_argument(keys.insert(axis.key).second, "--vary is given twice for ", axis.key,
                   "; it must be given once, with all values");
  }
  const std::vector<Point> points = grid(options, axes);
  Table table{{"run"}};
  for (const Axis& axis : axes) table[0].push_back(axis.key);
  const size_t left = table[0].size();
  for (const char* column : {"time", "tokens/s", "held-out loss, dense"}) {
    table[0].emplace_back(column);
  }
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  int failed = 0;
  // Of what is there already: what cannot be taken over is said before anything runs.
  std::vector<std::optional<run::Summary>> summaries;
  summaries.reserve(points.size());
  for (const Point& point : points) summaries.push_back(summary_of(point));
  for (size_t i = 0; i < points.size(); ++i) {
    const Point& point = points[i];
    std::cout << "== " << i + 1 << " of " << points.size() << ": " << point.name << '\n';
    if (options.dry_run) continue;
    std::optional<run::Summary>& summary = summaries[i];
    const std::string failure = summary ? "" : train_point(point);
    if (!summary && failure.empty()) summary = summary_of(point);

    std::vector<std::string> row{std::to_string(i + 1)};
    row.insert(row.end(), point.values.begin(), point.values.end());
    nlohmann::ordered_json record{{"run", point.name}};
    for (size_t axis = 0; axis < axes.size(); ++axis) record[axes[axis].key] = point.values[axis];
    if (summary) {
      const double seconds = summary->seconds(), speed = summary->tokens() / seconds;
      row.insert(row.end(),
                 {fixed(seconds, 1, " s"), fixed(speed, 0), fixed(summary->final_loss(), 4)});
      record["seconds"] = seconds;
      record["tokens_per_second"] = speed;
      record["dense_loss"] = summary->final_loss();
    } else {
      std::cout << "FAILED: " << failure << '\n';
      row.insert(row.end(), {"-", "-", "failed"});
      record["failed"] = failure;
      ++failed;
    }
    table.push_back(row);
    runs.push_back(record);
  }
  if (options.dry_run) return;
  const fs::path all = fs::path(options.out) / "sweep.json";
  fs::create_directories(options.out);
  io::write_atomically(all, runs.dump(2) + '\n');
  std::cout << '\n';
  print_table(std::cout, table, left);
  std::cout << "\nall figures: " << all.string() << "; curves: lighthouse plot "
            << (fs::path(options.out) / "*/").string() << '\n';
  if (failed > 0) {
    std::cerr << "lighthouse: " << failed << " of " << points.size() << " runs failed\n";
    throw CLI::RuntimeError(kFailed);
  }
}

}  // namespace

void add_sweep(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "sweep", "Train a recipe over a grid of settings, and compare time and held-out loss");
  const auto options = std::make_shared<SweepOptions>();
  options->recipe.add_to(*verb);
  verb->add_option("--vary", options->vary,
                   "KEY=A,B,...: values of a key of the recipe, like "
                   "stage.lighthouse.budget=256,512; repeated, it makes a grid")
      ->required()
      ->allow_extra_args(false);
  verb->add_option("--out", options->out,
                   "folder for the runs, a subfolder each; finished runs are not repeated")
      ->check(not_empty())
      ->required();
  verb->add_flag("--dry-run", options->dry_run, "print what would run, without running it");
  verb->callback([options] { sweep(*options); });
}

}  // namespace lighthouse::app
