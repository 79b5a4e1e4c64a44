#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/curves.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/verbs.h"

namespace lighthouse::app {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string picture = "runs.svg";
};

void plot(const Options& options) {
  const Output picture(options.picture);
  picture.write(picture_of(read_run_metrics(options.runs)));
  std::cout << "picture: " << picture.name() << '\n';
}

}  // namespace

void add_plot(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "plot", "Plot finished and unfinished runs in one picture: loss, throughput, memory");
  const auto options = std::make_shared<Options>();
  verb->add_option("RUN", options->runs, "run folders")
      ->check(not_empty())
      ->required()
      ->expected(1, -1);
  verb->add_option("--svg", options->picture, "file to write; - is standard output")
      ->check(output_file())
      ->capture_default_str();
  verb->callback([options] { plot(*options); });
}

}  // namespace lighthouse::app
