#include "lighthouse/data/json_lines.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/data/reader.h"

namespace lighthouse::data {
namespace {

constexpr size_t kMostOfAnError = 200;  ///< characters

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r") == std::string::npos;
}

bool next_filled(Lines& lines, std::string& line) {
  while (lines.next(line)) {
    if (!is_blank(line)) return true;
  }
  return false;
}

}  // namespace

void read_json_lines(const std::filesystem::path& path, const std::string& field,
                     const std::function<void(int64_t line, const std::string& text)>& visit) {
  Lines lines(path);
  std::string line;
  for (int64_t number = 1; lines.next(line); ++number) {
    if (is_blank(line)) continue;
    std::string text;
    try {
      text = nlohmann::json::parse(line).at(field).get<std::string>();
    } catch (const nlohmann::json::exception& error) {
      // It quotes what it has read, which may be a whole document.
      throw std::runtime_error(message(
          "'", path.string(), "', line ", number, ", is not a JSON object with a string '", field,
          "' (data.text_field): ", std::string(error.what()).substr(0, kMostOfAnError)));
    }
    visit(number, text);
  }
}

bool has_json_lines(const std::filesystem::path& path, const std::string& field) {
  Lines lines(path);
  std::string line;
  if (!next_filled(lines, line) || line[line.find_first_not_of(" \t")] != '{') return false;
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return false;
  const auto found = object.find(field);
  return (found != object.end() && found->is_string()) || next_filled(lines, line);
}

}  // namespace lighthouse::data
