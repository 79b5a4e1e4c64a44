#include "lighthouse/data/inventory.h"

#include <algorithm>
#include <functional>
#include <iomanip>
#include <sstream>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

constexpr int64_t kNamed = 5;  ///< of what is left out for one reason

/// The one of that name, made where there is none.
template <class T>
T& find(std::vector<T>& all, std::string T::*key, const std::string& name) {
  const auto found = std::ranges::find(all, name, key);
  if (found != all.end()) return *found;
  all.emplace_back().*key = name;
  return all.back();
}

/// ".txt 3, .md 1", the most frequent first.
std::string in_words(const std::map<std::string, int64_t>& endings) {
  std::vector<std::pair<std::string, int64_t>> sorted(endings.begin(), endings.end());
  std::ranges::stable_sort(sorted, std::greater{}, &std::pair<std::string, int64_t>::second);
  std::string text;
  for (size_t i = 0; i < sorted.size() && i < kNamed; ++i) {
    text += message(i > 0 ? ", " : "", sorted[i].first, ' ', sorted[i].second);
  }
  return text + (sorted.size() > kNamed ? ", ..." : "");
}

}  // namespace

void Inventory::take(const std::string& as, const std::filesystem::path& file, int64_t documents,
                     uint64_t tokens) {
  Taken& taken = find(taken_, &Taken::as, as);
  ++taken.files;
  taken.documents += documents;
  taken.tokens += tokens;
  const std::string ending = file.extension().string();
  ++taken.endings[ending.empty() ? "(none)" : ending];
}

void Inventory::leave_out(const std::string& why, const std::string& name,
                          const std::string& detail) {
  LeftOut& left_out = find(left_out_, &LeftOut::why, why);
  if (++left_out.count > kNamed + 1) return;
  if (left_out.count > 1) left_out.names += ", ";
  left_out.names += left_out.count > kNamed ? "..." : name + (detail.empty() ? "" : ": " + detail);
}

int64_t Inventory::left_out(const std::string& why) const {
  const auto found = std::ranges::find(left_out_, why, &LeftOut::why);
  return found == left_out_.end() ? 0 : found->count;
}

int64_t Inventory::left_out() const {
  int64_t count = 0;
  for (const LeftOut& one : left_out_) count += one.count;
  return count;
}

std::string Inventory::table(const std::string& unit) const {
  size_t width = 0;
  for (const Taken& taken : taken_) width = std::max(width, taken.as.size());
  for (const LeftOut& left_out : left_out_) width = std::max(width, left_out.why.size());
  const bool of_documents =
      std::ranges::any_of(taken_, [](const Taken& taken) { return taken.documents > 0; });
  std::ostringstream out;
  const auto line = [&](const std::string& what, const auto& files, const auto& documents,
                        const auto& tokens, const std::string& more) {
    out << "  " << std::left << std::setw(static_cast<int>(width)) << what << std::right
        << std::setw(9) << files;
    if (of_documents) out << std::setw(12) << documents;
    out << std::setw(16) << tokens << (more.empty() ? "" : "  ") << more << '\n';
  };
  if (!taken_.empty()) {
    out << "the data is taken as\n";
    line("", "files", "documents", unit, "");
  }
  for (const Taken& taken : taken_) {
    line(taken.as, taken.files, taken.documents, taken.tokens, in_words(taken.endings));
  }
  if (!left_out_.empty()) out << "left out\n";
  for (const LeftOut& left_out : left_out_) {
    line(left_out.why, left_out.count, "", "", left_out.names);
  }
  return out.str();
}

std::string Inventory::left_out_in_words() const {
  std::string text;
  for (const LeftOut& one : left_out_) {
    text += message(text.empty() ? "" : ", ", one.count, ' ', one.why, " (", one.names, ')');
  }
  return text;
}

}  // namespace lighthouse::data
