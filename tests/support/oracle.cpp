#include "tests/support/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace lighthouse::testing::oracle {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

int64_t power(int64_t base, int64_t exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

int64_t roots(int64_t tokens, const Config& config) {
  const int64_t window = power(config.pooling_factor, config.levels - 1);
  return (tokens + window - 1) / window;
}

int64_t entries_of_level(int64_t level, int64_t tokens, const Config& config) {
  return roots(tokens, config) * power(config.pooling_factor, config.levels - 1 - level);
}

/// The id of the first entry of a level.
int64_t offset(int64_t level, int64_t tokens, const Config& config) {
  int64_t sum = 0;
  for (int64_t l = 0; l < level; ++l) sum += entries_of_level(l, tokens, config);
  return sum;
}

struct Entry {
  int64_t level;
  int64_t index;
  int64_t window;

  int64_t first() const { return index * window; }
  int64_t end() const { return index * window + window - 1; }
};

Entry entry_of(int64_t id, int64_t tokens, const Config& config) {
  int64_t level = 0;
  while (id >= offset(level + 1, tokens, config)) ++level;
  return {level, id - offset(level, tokens, config), power(config.pooling_factor, level)};
}

/// The length of a row in padded positions, in which every document begins at a root. What is said
/// of entries above holds for them with that many tokens.
int64_t positions(int64_t tokens, const Config& config, const Documents& documents) {
  const int64_t window = power(config.pooling_factor, config.levels - 1);
  return (tokens + documents.most * (window - 1)) / window * window;
}

/// Where the tokens of a row stand, and the documents that they are of.
struct Places {
  std::vector<int64_t> position;
  std::vector<int64_t> document;

  Places(int64_t b, int64_t tokens, const Config& config, const Documents& documents) {
    const int64_t window = power(config.pooling_factor, config.levels - 1);
    std::vector<int64_t> starts =
        documents.starts.empty() ? std::vector<int64_t>{0} : documents.starts.at(b);
    starts.push_back(tokens);
    int64_t roots_before = 0;
    for (size_t d = 0; d + 1 < starts.size(); ++d) {
      for (int64_t t = starts[d]; t < starts[d + 1]; ++t) {
        position.push_back(window * roots_before + t - starts[d]);
        document.push_back(static_cast<int64_t>(d));
      }
      roots_before += (starts[d + 1] - starts[d] + window - 1) / window;
    }
  }

  /// The tokens of an entry's window.
  std::vector<int64_t> tokens_of(const Entry& e) const {
    std::vector<int64_t> tokens;
    for (size_t t = 0; t < position.size(); ++t)
      if (position[t] >= e.first() && position[t] <= e.end()) tokens.push_back(t);
    return tokens;
  }
  /// The document of an entry; -1 where it has no token.
  int64_t document_of(const Entry& e) const {
    const std::vector<int64_t> tokens = tokens_of(e);
    return tokens.empty() ? -1 : document[tokens[0]];
  }
  /// The tokens that hear an entry: from its end on, of its document alone.
  std::vector<int64_t> hearers(const Entry& e) const {
    const int64_t own = document_of(e);
    std::vector<int64_t> tokens;
    for (size_t t = 0; t < position.size(); ++t)
      if (position[t] >= e.end() && position[t] < e.end() + e.window && document[t] == own)
        tokens.push_back(t);
    return tokens;
  }
};

double norm(const Array& x, int64_t b, int64_t h, int64_t t) {
  double sum = 0;
  for (int64_t d = 0; d < x.size(3); ++d) sum += x(b, h, t, d) * x(b, h, t, d);
  return std::sqrt(sum);
}

Array norms(const Array& x) {
  Array result({x.size(0), x.size(1), x.size(2)});
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t h = 0; h < x.size(1); ++h)
      for (int64_t t = 0; t < x.size(2); ++t) result(b, h, t) = norm(x, b, h, t);
  return result;
}

/// Every `step`-th token from `first` on.
Array every(const Array& x, int64_t first, int64_t step) {
  Array result({x.size(0), x.size(1), (x.size(2) - first + step - 1) / step, x.size(3)});
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t h = 0; h < x.size(1); ++h)
      for (int64_t t = 0; t < result.size(2); ++t)
        for (int64_t d = 0; d < x.size(3); ++d) result(b, h, t, d) = x(b, h, first + t * step, d);
  return result;
}

Array expand_heads(const Array& x, int64_t heads) {
  Array result({x.size(0), heads, x.size(2), x.size(3)});
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < x.size(2); ++t)
        for (int64_t d = 0; d < x.size(3); ++d)
          result(b, h, t, d) = x(b, h / (heads / x.size(1)), t, d);
  return result;
}

/// The maximum over the heads of each group.
Array group_maximum(const Array& scores, int64_t groups) {
  Array result({scores.size(0), groups, scores.size(2)}, kNone);
  for (int64_t b = 0; b < scores.size(0); ++b)
    for (int64_t h = 0; h < scores.size(1); ++h)
      for (int64_t i = 0; i < scores.size(2); ++i) {
        double& most = result(b, h / (scores.size(1) / groups), i);
        most = std::max(most, scores(b, h, i));
      }
  return result;
}

Array window_maxima(const Array& tokens, const Config& config, const Documents& documents) {
  const int64_t length = positions(tokens.size(2), config, documents);
  const int64_t level0 = offset(1, length, config);
  Array result({tokens.size(0), tokens.size(1), offset(config.levels, length, config) - level0},
               kNone);
  for (int64_t b = 0; b < tokens.size(0); ++b) {
    const Places places(b, tokens.size(2), config, documents);
    for (int64_t i = 0; i < result.size(2); ++i)
      for (const int64_t t : places.tokens_of(entry_of(level0 + i, length, config)))
        for (int64_t h = 0; h < tokens.size(1); ++h) {
          const double score = tokens(b, h, t);
          if (!std::isnan(score)) result(b, h, i) = std::max(result(b, h, i), score);
        }
  }
  return result;
}

/// The refined entries of one tile, by level; `scores` (level, index) are those of one head.
template <class ScoreQ, class ScoreK>
std::vector<std::vector<int64_t>> refine_tile(int64_t first_root, int64_t end_root,
                                              const Config& config, const ScoreQ& score_q,
                                              const ScoreK& score_k) {
  std::vector<std::vector<int64_t>> refined(config.levels);
  std::vector<int64_t> candidates;
  for (int64_t i = first_root; i < end_root; ++i) candidates.push_back(i);
  const int64_t m = config.tile_budget;
  for (int64_t level = config.levels - 1; level >= 1; --level) {
    std::vector<int64_t>& chosen = refined[level];
    const auto take_best = [&](int64_t count, const auto& score) {
      for (int64_t n = 0; n < count && !candidates.empty(); ++n) {
        const auto worse = [&](int64_t a, int64_t b) {
          // Entry 0 is above every other; of equal scores the lower index comes first.
          return std::tuple(a == 0, a == 0 ? 0 : score(level, a), -a) <
                 std::tuple(b == 0, b == 0 ? 0 : score(level, b), -b);
        };
        const auto best = std::max_element(candidates.begin(), candidates.end(), worse);
        chosen.push_back(*best);
        candidates.erase(best);
      }
    };
    take_best(m / 2, score_q);
    take_best(m - m / 2, score_k);
    candidates.clear();
    std::sort(chosen.begin(), chosen.end());
    for (const int64_t i : chosen)
      for (int64_t c = 0; c < config.pooling_factor; ++c)
        candidates.push_back(i * config.pooling_factor + c);
  }
  return refined;
}

/// P (S, N): row s of P x is the mean over the tokens of the window of entry rows[s].
Array pooling_matrix(const Array& rows, int64_t b, int64_t g, int64_t tokens, const Config& config,
                     const Documents& documents) {
  const Places places(b, tokens, config, documents);
  const int64_t length = positions(tokens, config, documents);
  Array matrix({rows.size(2), tokens});
  for (int64_t s = 0; s < rows.size(2); ++s) {
    const auto window =
        places.tokens_of(entry_of(static_cast<int64_t>(rows(b, g, s)), length, config));
    for (const int64_t t : window) matrix(s, t) = 1.0 / static_cast<double>(window.size());
  }
  return matrix;
}

/// C (N, S): position j hears from the entries that end at j or up to a window less one before.
Array scatter_matrix(const Array& rows, int64_t b, int64_t g, int64_t tokens, const Config& config,
                     const Documents& documents) {
  const Places places(b, tokens, config, documents);
  const int64_t length = positions(tokens, config, documents);
  Array matrix({tokens, rows.size(2)});
  for (int64_t s = 0; s < rows.size(2); ++s) {
    const Entry e = entry_of(static_cast<int64_t>(rows(b, g, s)), length, config);
    for (const int64_t j : places.hearers(e)) matrix(j, s) = 1;
  }
  return matrix;
}

/// Multiplies each head of x by the matrix (or its transpose) of its rows.
template <class MatrixOf>
Array apply(const Array& x, const Array& rows, int64_t length, bool transposed,
            const MatrixOf& matrix_of) {
  Array result({x.size(0), x.size(1), length, x.size(3)});
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t h = 0; h < x.size(1); ++h) {
      const Array matrix = matrix_of(b, h / (x.size(1) / rows.size(1)));
      for (int64_t i = 0; i < length; ++i)
        for (int64_t j = 0; j < x.size(2); ++j) {
          const double weight = transposed ? matrix(j, i) : matrix(i, j);
          if (weight == 0) continue;
          for (int64_t d = 0; d < x.size(3); ++d) result(b, h, i, d) += weight * x(b, h, j, d);
        }
    }
  return result;
}

double dot(const Array& x, int64_t h, int64_t i, const Array& y, int64_t g, int64_t j, int64_t b) {
  double sum = 0;
  for (int64_t d = 0; d < x.size(3); ++d) sum += x(b, h, i, d) * y(b, g, j, d);
  return sum;
}

/// The weights (S, S) of causal attention; sets the log-sum-exps of (b, h, .).
Array weights(const Qkv& x, int64_t b, int64_t h, double scale, const Array& sequences,
              Array& lse) {
  const int64_t length = x.q.size(2);
  const int64_t g = h / (x.q.size(1) / x.k.size(1));
  const auto sees = [&](int64_t i, int64_t j) {
    if (sequences.shape.empty()) return true;
    const int64_t own = sequences.size(1) == 1 ? 0 : g;
    return sequences(b, own, i) == sequences(b, own, j);
  };
  Array p({length, length});
  for (int64_t i = 0; i < length; ++i) {
    double most = kNone;
    for (int64_t j = 0; j <= i; ++j)
      if (sees(i, j)) most = std::max(most, p(i, j) = scale * dot(x.q, h, i, x.k, g, j, b));
    double sum = 0;
    for (int64_t j = 0; j <= i; ++j)
      if (sees(i, j)) sum += p(i, j) = std::exp(p(i, j) - most);
    for (int64_t j = 0; j <= i; ++j) p(i, j) /= sum;
    lse(b, h, i) = most + std::log(sum);
  }
  return p;
}

/// A number for each piece of each document: (B, 1, N).
Array piece_numbers(int64_t batch, int64_t tokens, const Cut& cut, const Documents& documents) {
  Array numbers({batch, 1, tokens});
  for (int64_t b = 0; b < batch; ++b) {
    const Places places(b, tokens, {}, documents);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t piece = (t - cut.shift + cut.length) / cut.length;
      numbers(b, 0, t) = static_cast<double>(places.document[t] * (tokens + 2) + piece);
    }
  }
  return numbers;
}

/// The documents of the gathered rows: (B, G, S); none where there is but one.
Array row_documents(const Array& rows, int64_t tokens, const Config& config,
                    const Documents& documents) {
  if (documents.starts.empty()) return {};
  Array numbers(rows.shape);
  for (int64_t b = 0; b < rows.size(0); ++b) {
    const Places places(b, tokens, config, documents);
    for (int64_t g = 0; g < rows.size(1); ++g)
      for (int64_t s = 0; s < rows.size(2); ++s)
        numbers(b, g, s) = static_cast<double>(places.document_of(entry_of(
            static_cast<int64_t>(rows(b, g, s)), positions(tokens, config, documents), config)));
  }
  return numbers;
}

void add(const Qkv& x, Qkv& sum) {
  for (auto [from, to] :
       {std::pair(&x.q, &sum.q), std::pair(&x.k, &sum.k), std::pair(&x.v, &sum.v)})
    for (size_t i = 0; i < from->values.size(); ++i) to->values[i] += from->values[i];
}

/// The weights of a position's near row and of the gathered rows that it hears.
struct Shares {
  double near;
  std::vector<std::pair<int64_t, double>> far;  ///< row and weight
  double lse;                                   ///< of all together
};

/// Calls f(b, h, j, shares) for every position.
template <class F>
void for_each_position(const Attended& near, const Attended& far, const Array& rows,
                       const Config& config, const Documents& documents, const F& f) {
  const int64_t tokens = near.lse.size(2);
  const int64_t length = positions(tokens, config, documents);
  for (int64_t b = 0; b < near.lse.size(0); ++b) {
    const Places places(b, tokens, config, documents);
    for (int64_t h = 0; h < near.lse.size(1); ++h) {
      std::vector<std::vector<int64_t>> heard(tokens);
      for (int64_t s = 0; s < rows.size(2); ++s) {
        const auto id = static_cast<int64_t>(rows(b, h / (near.lse.size(1) / rows.size(1)), s));
        for (const int64_t j : places.hearers(entry_of(id, length, config))) heard[j].push_back(s);
      }
      for (int64_t j = 0; j < tokens; ++j) {
        const double own = near.lse(b, h, j);
        Shares shares{1, {}, own};
        for (const int64_t s : heard[j]) shares.far.emplace_back(s, far.lse(b, h, s));
        // Of all masses the largest is taken for 1; where none is above 0, near is all there is.
        double most = own;
        for (const auto& [row, lse] : shares.far) most = std::max(most, lse);
        const double count = static_cast<double>(shares.far.size());
        const auto mass = [&](double lse) { return most == kNone ? 0 : std::exp(lse - most); };
        double sum = mass(own);
        for (auto& [row, share] : shares.far) sum += share = mass(share) / count;
        if (most != kNone) {
          shares.near = mass(own) / sum;
          for (auto& [row, share] : shares.far) share /= sum;
          shares.lse = most + std::log(sum);
        }
        f(b, h, j, shares);
      }
    }
  }
}

Qkv gather(const Qkv& x, const Array& rows, const Config& config, const Documents& documents) {
  return {oracle::gather(x.q, rows, config, documents),
          oracle::gather(x.k, rows, config, documents),
          oracle::gather(x.v, rows, config, documents)};
}

Qkv gather_adjoint(const Qkv& grad, const Array& rows, int64_t tokens, const Config& config,
                   const Documents& documents) {
  return {oracle::gather_adjoint(grad.q, rows, tokens, config, documents),
          oracle::gather_adjoint(grad.k, rows, tokens, config, documents),
          oracle::gather_adjoint(grad.v, rows, tokens, config, documents)};
}

double scale_of(const Config& config, int64_t dim) {
  return config.scale.value_or(1 / std::sqrt(static_cast<double>(dim)));
}

}  // namespace

int64_t entries(int64_t tokens, const Config& config, const Documents& documents) {
  return offset(config.levels, positions(tokens, config, documents), config);
}

int64_t length(int64_t tokens, const Config& config, const Documents& documents) {
  const int64_t r = roots(positions(tokens, config, documents), config);
  const int64_t tiles = config.budget / config.tile_budget;
  int64_t rows = r;
  for (int64_t t = 0; t < tiles; ++t) {
    int64_t candidates = r * (t + 1) / tiles - r * t / tiles;
    for (int64_t level = config.levels - 1; level >= 1; --level) {
      const int64_t refined = std::min(config.tile_budget, candidates);
      rows += config.pooling_factor * refined;
      candidates = config.pooling_factor * refined;
    }
  }
  return rows;
}

Scores norm_scores(const Array& q, const Array& k) { return {norms(q), norms(k)}; }

Scores dilated_scores(const Qkv& x, int64_t dilation, double scale) {
  const int64_t heads = x.q.size(1);
  const Array k = expand_heads(x.k, heads);
  const Array v = expand_heads(x.v, heads);
  Scores scores{norms(x.q), norms(x.q)};
  for (int64_t r = 0; r < std::min(dilation, x.q.size(2)); ++r) {
    const Array sub_q = every(x.q, r, dilation);
    const Array sub_k = every(k, r, dilation);
    const Array sub_v = every(v, r, dilation);
    const Array by_q = norms(attend({sub_q, sub_k, sub_v}, scale).out);
    const Array by_k = norms(attend({sub_k, sub_q, sub_v}, scale).out);
    for (int64_t b = 0; b < x.q.size(0); ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < sub_q.size(2); ++t) {
          scores.q(b, h, r + t * dilation) = by_q(b, h, t);
          scores.k(b, h, r + t * dilation) = by_k(b, h, t);
        }
  }
  return {scores.q, group_maximum(scores.k, x.k.size(1))};
}

Scores pool(const Scores& tokens, const Config& config, const Documents& documents) {
  return {group_maximum(window_maxima(tokens.q, config, documents), tokens.k.size(1)),
          window_maxima(tokens.k, config, documents)};
}

Maps select(const Scores& scores, int64_t token_count, const Config& config,
            const Documents& documents) {
  const int64_t tokens = positions(token_count, config, documents);
  const int64_t batch = scores.q.size(0);
  const int64_t groups = scores.q.size(1);
  const int64_t level0 = offset(1, tokens, config);
  const int64_t tiles = config.budget / config.tile_budget;
  const int64_t r = roots(tokens, config);
  const int64_t shift = config.selection == SelectionRule::kCausal ? 1 : 0;
  Maps maps{Array({batch, groups, length(tokens, config)}), Array(scores.q.shape, -1)};
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      const auto judged_by = [&](const Array& all) {
        return [&, shift](int64_t level, int64_t index) {
          return all(b, g, offset(level, tokens, config) - level0 + index - shift);
        };
      };
      std::vector<Entry> sequence;
      std::vector<int64_t> refined_ids;
      for (int64_t i = 0; i < r; ++i)
        sequence.push_back({config.levels - 1, i, power(config.pooling_factor, config.levels - 1)});
      for (int64_t t = 0; t < tiles; ++t) {
        const auto refined = refine_tile(r * t / tiles, r * (t + 1) / tiles, config,
                                         judged_by(scores.q), judged_by(scores.k));
        for (int64_t level = 1; level < config.levels; ++level)
          for (const int64_t i : refined[level]) {
            refined_ids.push_back(offset(level, tokens, config) + i);
            for (int64_t c = 0; c < config.pooling_factor; ++c)
              sequence.push_back({level - 1, i * config.pooling_factor + c,
                                  power(config.pooling_factor, level - 1)});
          }
      }
      std::sort(sequence.begin(), sequence.end(), [](const Entry& a, const Entry& b_entry) {
        return std::tuple(a.end(), a.level) < std::tuple(b_entry.end(), b_entry.level);
      });
      for (size_t s = 0; s < sequence.size(); ++s) {
        const int64_t id = offset(sequence[s].level, tokens, config) + sequence[s].index;
        // at() fails where the formula of the length is wrong.
        maps.rows.values.at((b * groups + g) * maps.rows.size(2) + s) = static_cast<double>(id);
        if (sequence[s].level == 0) continue;
        const bool refined = std::count(refined_ids.begin(), refined_ids.end(), id) > 0;
        maps.slots(b, g, id - level0) = static_cast<double>(2 * s + (refined ? 1 : 0));
      }
    }
  return maps;
}

Array gather(const Array& x, const Array& rows, const Config& config, const Documents& documents) {
  return apply(x, rows, rows.size(2), false, [&](int64_t b, int64_t g) {
    return pooling_matrix(rows, b, g, x.size(2), config, documents);
  });
}

Array gather_adjoint(const Array& grad, const Array& rows, int64_t tokens, const Config& config,
                     const Documents& documents) {
  return apply(grad, rows, tokens, true, [&](int64_t b, int64_t g) {
    return pooling_matrix(rows, b, g, tokens, config, documents);
  });
}

Array scatter(const Array& gathered, const Array& rows, int64_t tokens, const Config& config,
              const Documents& documents) {
  return apply(gathered, rows, tokens, false, [&](int64_t b, int64_t g) {
    return scatter_matrix(rows, b, g, tokens, config, documents);
  });
}

Array scatter_adjoint(const Array& grad, const Array& rows, const Config& config) {
  return apply(grad, rows, rows.size(2), true, [&](int64_t b, int64_t g) {
    return scatter_matrix(rows, b, g, grad.size(2), config, {});
  });
}

Attended attend(const Qkv& x, double scale, const Array& sequences) {
  const int64_t length = x.q.size(2);
  Attended result{Array(x.q.shape), Array({x.q.size(0), x.q.size(1), length})};
  for (int64_t b = 0; b < x.q.size(0); ++b)
    for (int64_t h = 0; h < x.q.size(1); ++h) {
      const int64_t g = h / (x.q.size(1) / x.k.size(1));
      const Array p = weights(x, b, h, scale, sequences, result.lse);
      for (int64_t i = 0; i < length; ++i)
        for (int64_t j = 0; j <= i; ++j)
          for (int64_t d = 0; d < x.q.size(3); ++d)
            result.out(b, h, i, d) += p(i, j) * x.v(b, g, j, d);
    }
  return result;
}

Qkv attend_adjoint(const Qkv& x, const Attended& grad, double scale, const Array& sequences) {
  Qkv result{Array(x.q.shape), Array(x.k.shape), Array(x.v.shape)};
  const int64_t length = x.q.size(2);
  Array lse(grad.lse.shape);
  for (int64_t b = 0; b < x.q.size(0); ++b)
    for (int64_t h = 0; h < x.q.size(1); ++h) {
      const int64_t g = h / (x.q.size(1) / x.k.size(1));
      const Array p = weights(x, b, h, scale, sequences, lse);
      for (int64_t i = 0; i < length; ++i) {
        double mean = 0;
        for (int64_t j = 0; j <= i; ++j) mean += p(i, j) * dot(grad.out, h, i, x.v, g, j, b);
        for (int64_t j = 0; j <= i; ++j) {
          // The weights are also the derivatives of the log-sum-exp.
          const double grad_score =
              scale * p(i, j) * (dot(grad.out, h, i, x.v, g, j, b) - mean + grad.lse(b, h, i));
          for (int64_t d = 0; d < x.q.size(3); ++d) {
            result.q(b, h, i, d) += grad_score * x.k(b, g, j, d);
            result.k(b, g, j, d) += grad_score * x.q(b, h, i, d);
            result.v(b, g, j, d) += p(i, j) * grad.out(b, h, i, d);
          }
        }
      }
    }
  return result;
}

Attended attend_pieces(const Qkv& x, const Cut& cut, double scale, const Documents& documents) {
  return attend(x, scale, piece_numbers(x.q.size(0), x.q.size(2), cut, documents));
}

Qkv attend_pieces_adjoint(const Qkv& x, const Cut& cut, const Attended& grad, double scale,
                          const Documents& documents) {
  return attend_adjoint(x, grad, scale, piece_numbers(x.q.size(0), x.q.size(2), cut, documents));
}

Attended merge(const Attended& near, const Attended& far, const Array& rows, const Config& config,
               const Documents& documents) {
  Attended result{Array(near.out.shape), Array(near.lse.shape)};
  for_each_position(near, far, rows, config, documents,
                    [&](int64_t b, int64_t h, int64_t j, const Shares& w) {
                      result.lse(b, h, j) = w.lse;
                      for (int64_t d = 0; d < near.out.size(3); ++d) {
                        double& out = result.out(b, h, j, d);
                        if (w.near != 0) out += w.near * near.out(b, h, j, d);
                        for (const auto& [row, share] : w.far)
                          if (share != 0) out += share * far.out(b, h, row, d);
                      }
                    });
  return result;
}

MergeGradients merge_adjoint(const Attended& near, const Attended& far, const Array& rows,
                             const Config& config, const Array& grad_out,
                             const Documents& documents) {
  const Attended merged = merge(near, far, rows, config, documents);
  MergeGradients grad{{Array(near.out.shape), Array(near.lse.shape)},
                      {Array(far.out.shape), Array(far.lse.shape)}};
  const auto add_gradients = [&](int64_t b, int64_t h, int64_t j, const Shares& w) {
    // out is a mean of the branches' rows with the softmax of their log-sum-exps as weights.
    const double mean = dot(grad_out, h, j, merged.out, h, j, b);
    grad.near.lse(b, h, j) = w.near * (dot(grad_out, h, j, near.out, h, j, b) - mean);
    for (const auto& [row, share] : w.far)
      grad.far.lse(b, h, row) += share * (dot(grad_out, h, j, far.out, h, row, b) - mean);
    for (int64_t d = 0; d < near.out.size(3); ++d) {
      grad.near.out(b, h, j, d) = w.near * grad_out(b, h, j, d);
      for (const auto& [row, share] : w.far)
        grad.far.out(b, h, row, d) += share * grad_out(b, h, j, d);
    }
  };
  for_each_position(near, far, rows, config, documents, add_gradients);
  return grad;
}

Array attention(const Qkv& x, const Array& rows, const Config& config) {
  return scatter(attend(gather(x, rows, config, {}), scale_of(config, x.q.size(3))).out, rows,
                 x.q.size(2), config);
}

Qkv attention_adjoint(const Qkv& x, const Array& grad_out, const Array& rows,
                      const Config& config) {
  const Qkv gathered = gather(x, rows, config, {});
  const Array no_lse({x.q.size(0), x.q.size(1), rows.size(2)});
  const Qkv grad = attend_adjoint(gathered, {scatter_adjoint(grad_out, rows, config), no_lse},
                                  scale_of(config, x.q.size(3)));
  return gather_adjoint(grad, rows, x.q.size(2), config, {});
}

Array attention(const Qkv& x, const Array& rows, const Config& config, const Cut& cut,
                const Documents& documents) {
  const double scale = scale_of(config, x.q.size(3));
  const Attended far = attend(gather(x, rows, config, documents), scale,
                              row_documents(rows, x.q.size(2), config, documents));
  return merge(attend_pieces(x, cut, scale, documents), far, rows, config, documents).out;
}

Qkv attention_adjoint(const Qkv& x, const Array& grad_out, const Array& rows, const Config& config,
                      const Cut& cut, const Documents& documents) {
  const double scale = scale_of(config, x.q.size(3));
  const Qkv gathered = gather(x, rows, config, documents);
  const Array of_rows = row_documents(rows, x.q.size(2), config, documents);
  const MergeGradients grad =
      merge_adjoint(attend_pieces(x, cut, scale, documents), attend(gathered, scale, of_rows), rows,
                    config, grad_out, documents);
  Qkv result = attend_pieces_adjoint(x, cut, grad.near, scale, documents);
  add(gather_adjoint(attend_adjoint(gathered, grad.far, scale, of_rows), rows, x.q.size(2), config,
                     documents),
      result);
  return result;
}

}  // namespace lighthouse::testing::oracle
