#pragma once

#include <CLI/CLI.hpp>

namespace lighthouse::app {

/// The check of an option that names a file to write at the end: one that could not be written is
/// refused before the work.
CLI::Validator output_file();

}  // namespace lighthouse::app
