#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/picture.h"
#include "apps/lighthouse/verbs.h"

namespace lighthouse::app {
namespace {

struct PlotOptions {
  std::vector<std::string> runs;
  std::string picture = "runs.svg";
  bool log_x = false;
  bool log_y = false;
  int64_t smooth = 0;
  bool no_raw = false;
};

void plot(const PlotOptions& options) {
  const Output picture(options.picture);
  std::vector<std::string> arguments;
  if (options.log_x) arguments.emplace_back("--log-x");
  if (options.log_y) arguments.emplace_back("--log-y");
  if (options.smooth > 0) arguments.push_back("--smooth=" + std::to_string(options.smooth));
  if (options.no_raw) arguments.emplace_back("--no-raw");
  arguments.emplace_back("--");
  arguments.insert(arguments.end(), options.runs.begin(), options.runs.end());
  picture.write(draw(options.picture, arguments));
  std::cout << "picture: " << picture.name() << '\n';
}

}  // namespace

void add_plot(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "plot", "Plot finished and unfinished runs: loss by tokens and by time, throughput, memory");
  const auto options = std::make_shared<PlotOptions>();
  verb->add_option("RUN", options->runs,
                   "run folders; or one file that compare or passkey wrote with --json")
      ->check(not_empty())
      ->required()
      ->expected(1, -1);
  verb->add_option("--out", options->picture,
                   "picture to write, a .png, .svg or .pdf file; - is standard output, as SVG")
      ->check(picture_file())
      ->capture_default_str();
  verb->add_flag("--log-x", options->log_x, "logarithmic axes of tokens and time");
  verb->add_flag("--log-y", options->log_y, "logarithmic axes of losses");
  verb->add_option(
          "--smooth", options->smooth,
          "steps that a smoothed curve averages; 1: no smoothing; default: a fiftieth of the run")
      ->check(integer(1));
  verb->add_flag("--no-raw", options->no_raw, "draw smoothed curves alone");
  verb->callback([options] { plot(*options); });
}

}  // namespace lighthouse::app
