#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace lighthouse::app {

/// The check of an option that names a picture to write: as output_file(), and the suffix must be
/// one of a format that can be drawn.
CLI::Validator picture_file();

/// The bytes of a picture of the format that the name `file` says: .png, .pdf or .svg, which is
/// also that of a name without a suffix. Python draws it, with matplotlib, by plot.py of the Python
/// package, which lies beside the program: the Python that LIGHTHOUSE_PYTHON names; if it is not
/// set, the one that the program was built with; if there is none, python3.
/// @param arguments of plot.py: what to draw, and options
/// @param figures JSON, which the argument "-" stands for
/// Throws where there is no picture; CLI::RuntimeError if Python has said why on stderr.
std::string draw(const std::string& file, const std::vector<std::string>& arguments,
                 const std::string& figures = "");

}  // namespace lighthouse::app
