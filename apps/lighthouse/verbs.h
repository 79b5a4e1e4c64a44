#pragma once

#include <CLI/CLI.hpp>

namespace lighthouse::app {

// Each adds its subcommand. A verb is done when its callback returns; it throws
// CLI::RuntimeError(status) to end with another status, having said why on stderr. Any other
// exception is printed, and ends the program with kUnusable.

/// A check that the verb makes has failed.
inline constexpr int kFailed = 1;
/// The command line is wrong, or an input is not readable as what it must be.
inline constexpr int kUnusable = 2;

void add_bench(CLI::App& app);
void add_compare(CLI::App& app);
void add_eval(CLI::App& app);
void add_export(CLI::App& app);
void add_info(CLI::App& app);
void add_passkey(CLI::App& app);
void add_plan(CLI::App& app);
void add_plot(CLI::App& app);
void add_sweep(CLI::App& app);
void add_train(CLI::App& app);
void add_verify(CLI::App& app);

}  // namespace lighthouse::app
