#include "lighthouse/data/file_list.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"

namespace lighthouse::data {
namespace {

constexpr std::array kKinds{"text", "json-lines", "tokens", "tokens-held-out", "left-out"};

/// A name on one line, whatever bytes it has.
std::string escaped(const std::string& name) {
  std::string text;
  for (const char c : name) {
    if (c == '\\') {
      text += "\\\\";
    } else if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return text;
}

std::string unescaped(const std::string& text) {
  std::string name;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      name += text[++i] == 'n' ? '\n' : text[i];
    } else {
      name += text[i];
    }
  }
  return name;
}

}  // namespace

FileList read_file_list(const std::filesystem::path& path) {
  FileList list;
  if (!std::filesystem::exists(path)) return list;
  std::istringstream lines(io::read_file(path));
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    std::istringstream columns(line);
    ListedFile file{};
    columns >> file.entry >> file.as >> file.tokens >> std::hex >> file.hash;
    if (!columns || columns.get() != ' ' || !std::ranges::count(kKinds, file.as)) {
      throw std::runtime_error(message("'", path.string(), "', line ", number, ", is '", line,
                                       "'; it must list a file of the data"));
    }
    std::getline(columns, file.name);
    file.name = unescaped(file.name);
    list.push_back(std::move(file));
  }
  return list;
}

void write_file_list(const std::filesystem::path& path, const FileList& list) {
  std::ostringstream out;
  for (const ListedFile& file : list) {
    out << file.entry << ' ' << file.as << ' ' << std::dec << file.tokens << ' ' << std::hex
        << std::setw(16) << std::setfill('0') << file.hash << std::dec << ' ' << escaped(file.name)
        << '\n';
  }
  io::write_atomically(path, out.str());
}

}  // namespace lighthouse::data
