#include "lighthouse/core/geometry.h"

#include <algorithm>
#include <limits>
#include <ostream>

#include "lighthouse/core/check.h"

namespace lighthouse {
namespace {

constexpr int64_t kMostEntries = std::numeric_limits<int32_t>::max();

int64_t checked_tokens(int64_t tokens, const Config& config) {
  config.validate();
  check_argument(tokens >= 1, "the number of tokens is ", tokens, "; it must be at least 1");
  check_argument(tokens <= kMostEntries, "the number of tokens is ", tokens,
                 "; it must be at most ", kMostEntries);
  return tokens;
}

std::array<int64_t, Geometry::kMaxLevels> windows(int64_t levels, int64_t pooling) {
  check_argument(levels <= Geometry::kMaxLevels, "levels is ", levels, "; it must be at most ",
                 Geometry::kMaxLevels);
  std::array<int64_t, Geometry::kMaxLevels> window{1};
  for (int64_t l = 1; l < levels; ++l) {
    check_argument(window[l - 1] <= kMostEntries / pooling, "levels is ", levels,
                   " and pooling_factor is ", pooling,
                   "; a root's window, pooling_factor^(levels-1)", " tokens, must be at most ",
                   kMostEntries);
    window[l] = window[l - 1] * pooling;
  }
  return window;
}

int64_t checked_documents(int64_t documents) {
  check_argument(documents >= 1 && documents <= kMostEntries,
                 "the number of documents in a row is ", documents, "; it must be from 1 to ",
                 kMostEntries);
  return documents;
}

int64_t count_roots(int64_t tokens, int64_t documents, int64_t root_window, int64_t tiles,
                    const Config& config) {
  const int64_t roots = (tokens + documents * (root_window - 1)) / root_window;
  check_argument(tiles <= roots, "budget / tile_budget is ", tiles, " tiles (", config.budget,
                 " / ", config.tile_budget, "), but ", tokens, " tokens have only ", roots,
                 " roots of ", root_window, " tokens; every tile needs a root");
  return roots;
}

std::array<int64_t, Geometry::kMaxLevels + 1> first_entries(
    int64_t tokens, const Config& config, int64_t roots,
    const std::array<int64_t, Geometry::kMaxLevels>& window) {
  std::array<int64_t, Geometry::kMaxLevels + 1> first{};
  for (int64_t l = 0; l < config.levels; ++l) {
    const int64_t entries = roots * window[config.levels - 1 - l];
    check_argument(entries <= kMostEntries - first[l], "the pyramid over ", tokens,
                   " tokens (levels ", config.levels, ", pooling_factor ", config.pooling_factor,
                   ") has too many entries; it must have at most ", kMostEntries);
    first[l + 1] = first[l] + entries;
  }
  return first;
}

}  // namespace

Geometry::Geometry(int64_t token_count, const Config& config, int64_t document_count)
    : tokens(checked_tokens(token_count, config)),
      documents(checked_documents(document_count)),
      levels(config.levels),
      pooling(config.pooling_factor),
      tiles(config.budget / config.tile_budget),
      window(windows(levels, pooling)),
      roots(count_roots(tokens, documents, root_window(), tiles, config)),
      first(first_entries(tokens, config, roots, window)),
      // A tile refines no more than its candidates, so a huge m is as good as all entries.
      tile_budget(std::min(config.tile_budget, first[1])),
      rows(tile_row(tiles)) {
  check_argument(rows <= kMostEntries / 2, "the gathered sequence has ", rows,
                 " rows; it must have at most ", kMostEntries / 2);
}

bool Geometry::tiles_fit(int64_t tokens, const Config& config, int64_t documents) {
  int64_t roots = tokens;
  for (int64_t l = 1; l < config.levels; ++l) {
    // floor((roots + documents (p - 1)) / p), for any p
    roots = documents + (roots - documents) / config.pooling_factor -
            ((roots - documents) % config.pooling_factor < 0 ? 1 : 0);
  }
  return config.budget / config.tile_budget <= roots;
}

std::string dense_because(int64_t tokens, const Config& config, int64_t documents) {
  config.validate();
  if (!Geometry::tiles_fit(tokens, config, documents)) {
    return message("a budget of ", config.budget, " has more tiles (of ", config.tile_budget,
                   ") than ", tokens, " tokens have roots");
  }
  const int64_t rows = Geometry(tokens, config, documents).rows;
  if (rows < tokens) return "";
  return message("the gathered sequence would have ", rows, " rows for ", tokens, " tokens");
}

std::ostream& operator<<(std::ostream& out, const Geometry& g) {
  out << "Geometry{tokens " << g.tokens;
  if (g.documents > 1) out << ", documents " << g.documents;
  out << ", levels " << g.levels << ", pooling_factor " << g.pooling << ", tiles " << g.tiles
      << " x " << g.tile_budget << ", roots " << g.roots << ", rows " << g.rows << ", entries";
  for (int64_t l = 0; l < g.levels; ++l) out << (l ? " + " : " ") << g.entries(l);
  return out << '}';
}

}  // namespace lighthouse
