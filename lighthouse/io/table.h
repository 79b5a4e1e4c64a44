#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace lighthouse::io {

/// Rows of cells, the first of them headings.
using Table = std::vector<std::vector<std::string>>;

/// Prints a table in columns, the first `left` aligned to the left and the others to the right.
/// @param indent what each line begins with
void print_table(std::ostream& out, const Table& table, size_t left = 0,
                 const std::string& indent = "");

/// "1.50 s": a number with `digits` decimals and then `unit`; "-" for a NaN.
std::string fixed(double value, int digits, const std::string& unit = "");

}  // namespace lighthouse::io
