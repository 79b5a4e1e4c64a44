#include <c10/util/Exception.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <limits>

#include "apps/lighthouse/verbs.h"

namespace {

int run(int argc, char** argv) {
  CLI::App app("Trains, measures and verifies Lighthouse Attention.", "lighthouse");
  app.set_version_flag("--version", LIGHTHOUSE_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return std::string("lighthouse: ") + error.what() + "\nlighthouse --help says more.\n";
  });
  lighthouse::app::add_bench(app);
  lighthouse::app::add_compare(app);
  lighthouse::app::add_eval(app);
  lighthouse::app::add_export(app);
  lighthouse::app::add_info(app);
  lighthouse::app::add_passkey(app);
  lighthouse::app::add_plan(app);
  lighthouse::app::add_plot(app);
  lighthouse::app::add_sweep(app);
  lighthouse::app::add_train(app);
  lighthouse::app::add_verify(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : lighthouse::app::kUnusable;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // Memory that is given back between two steps costs its page faults again: glibc's defaults make
  // that several times what our own stages take.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  // cuBLAS gives the same bits from run to run with workspaces of its own, which it must be told of
  // before it is first used.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  try {
    return run(argc, argv);
  } catch (const c10::Error& error) {
    std::cerr << "lighthouse: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "lighthouse: " << error.what() << '\n';
  }
  return lighthouse::app::kUnusable;
}
