#include "lighthouse/io/table.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <ostream>
#include <sstream>

namespace lighthouse::io {

void print_table(std::ostream& out, const Table& table, size_t left, const std::string& indent) {
  std::vector<size_t> widths;
  for (const auto& row : table) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : table) {
    std::ostringstream line;
    line << indent;
    for (size_t i = 0; i < row.size(); ++i) {
      line << (i > 0 ? "  " : "") << (i < left ? std::left : std::right)
           << std::setw(static_cast<int>(widths[i])) << row[i];
    }
    out << line.str().substr(0, line.str().find_last_not_of(' ') + 1) << '\n';
  }
}

std::string fixed(double value, int digits, const std::string& unit) {
  if (std::isnan(value)) return "-";
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value << unit;
  return out.str();
}

}  // namespace lighthouse::io
