#include "lighthouse/core/geometry.h"

#include <algorithm>
#include <limits>
#include <ostream>

#include "lighthouse/core/check.h"

namespace lighthouse {

Geometry::Geometry(int64_t token_count, const Config& config)
    : tokens(token_count),
      levels(config.levels),
      pooling(config.pooling_factor),
      tile_budget(config.tile_budget),
      window{},
      first{} {
  config.validate();
  tiles = config.budget / config.tile_budget;
  check_argument(tokens >= 1, "the number of tokens is ", tokens, "; it must be at least 1");

  constexpr int64_t kMostEntries = std::numeric_limits<int32_t>::max();
  check_argument(levels <= kMaxLevels, "levels is ", levels, "; it must be at most ", kMaxLevels);
  window[0] = 1;
  for (int64_t l = 1; l < levels; ++l) {
    check_argument(window[l - 1] <= kMostEntries / pooling, "levels is ", levels,
                   " and pooling_factor is ", pooling,
                   "; a root's window, pooling_factor^(levels-1)", " tokens, must be at most ",
                   kMostEntries);
    window[l] = window[l - 1] * pooling;
  }
  check_argument(tokens <= kMostEntries, "the number of tokens is ", tokens,
                 "; it must be at most ", kMostEntries);
  roots = (tokens + root_window() - 1) / root_window();
  check_argument(tiles <= roots, "budget / tile_budget is ", tiles, " tiles (", config.budget,
                 " / ", config.tile_budget, "), but ", tokens, " tokens have only ", roots,
                 " roots of ", root_window(), " tokens; every tile needs a root");
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t entries_of_level = roots * window[levels - 1 - l];
    check_argument(entries_of_level <= kMostEntries - first[l], "the pyramid over ", tokens,
                   " tokens (levels ", levels, ", pooling_factor ", pooling,
                   ") has too many entries; it must have at most ", kMostEntries);
    first[l + 1] = first[l] + entries_of_level;
  }

  // A tile refines no more than its candidates, so a huge m is as good as one of the tokens'
  // number.
  tile_budget = std::min(tile_budget, first[1]);
  rows = tile_row(tiles);
  check_argument(rows <= kMostEntries / 2, "the gathered sequence has ", rows,
                 " rows; it must have at most ", kMostEntries / 2);
}

bool Geometry::tiles_fit(int64_t tokens, const Config& config) {
  int64_t roots = tokens;
  for (int64_t l = 1; l < config.levels; ++l) {
    roots = roots / config.pooling_factor + (roots % config.pooling_factor != 0 ? 1 : 0);
  }
  return config.budget / config.tile_budget <= roots;
}

std::string dense_because(int64_t tokens, const Config& config) {
  config.validate();
  if (!Geometry::tiles_fit(tokens, config)) {
    return message("a budget of ", config.budget, " has more tiles (of ", config.tile_budget,
                   ") than ", tokens, " tokens have roots");
  }
  const int64_t rows = Geometry(tokens, config).rows;
  if (rows < tokens) return "";
  return message("the gathered sequence would have ", rows, " rows for ", tokens, " tokens");
}

std::ostream& operator<<(std::ostream& out, const Geometry& g) {
  out << "Geometry{tokens " << g.tokens << ", levels " << g.levels << ", pooling_factor "
      << g.pooling << ", tiles " << g.tiles << " x " << g.tile_budget << ", roots " << g.roots
      << ", rows " << g.rows << ", entries";
  for (int64_t l = 0; l < g.levels; ++l) out << (l ? " + " : " ") << g.entries(l);
  return out << '}';
}

}  // namespace lighthouse
