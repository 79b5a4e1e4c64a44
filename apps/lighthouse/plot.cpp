#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/lighthouse/curves.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/io/file.h"

namespace lighthouse::app {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string picture = "runs.svg";
};

void plot(const Options& options) {
  io::write_atomically(options.picture, picture_of(read_run_metrics(options.runs)));
  std::cout << "picture: " << std::filesystem::absolute(options.picture).string() << '\n';
}

}  // namespace

void add_plot(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "plot", "Lays runs, ended or not, into one picture: loss, throughput, memory");
  const auto options = std::make_shared<Options>();
  verb->add_option("RUN", options->runs, "folders of runs")->required()->expected(1, -1);
  verb->add_option("--svg", options->picture, "the file to write")
      ->check(output_file())
      ->capture_default_str();
  verb->callback([options] { plot(*options); });
}

}  // namespace lighthouse::app
