#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace lighthouse::app {

using Table = std::vector<std::vector<std::string>>;

/// Prints rows of cells, the first of them headings, in columns aligned to the right; the first
/// `left` columns to the left.
void print_table(std::ostream& out, const Table& table, size_t left = 0);

/// "1.50 s": a number with that many digits behind the point, and what follows it;
/// "-" for a NaN.
std::string fixed(double value, int digits, const std::string& unit = "");

}  // namespace lighthouse::app
