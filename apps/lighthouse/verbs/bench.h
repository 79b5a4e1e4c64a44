#pragma once

#include <CLI/CLI.hpp>

namespace lighthouse::app {

/// What `lighthouse bench` can time, a subcommand each.
void add_bench_attention(CLI::App& bench);
void add_bench_train(CLI::App& bench);

}  // namespace lighthouse::app
