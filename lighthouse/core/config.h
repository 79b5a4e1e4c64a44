#pragma once

#include <cstdint>
#include <optional>

#include "lighthouse/core/words.h"

namespace lighthouse {

/// How each token gets its two scores: norms of q and k, or of two attentions, dilated or gated and
/// linear (ops/scorers.h).
enum class Scorer { kNorm, kDilated, kGla };
template <>
inline constexpr std::array kWords<Scorer>{"norm", "dilated", "gla"};

/// Whose scores decide whether an entry is refined: its own (the paper's rule), or those of the
/// entry before it, so that nothing of a window's own content does.
enum class SelectionRule { kPublished, kCausal };
template <>
inline constexpr std::array kWords<SelectionRule>{"published", "causal"};

/// The settings of Lighthouse Attention. The defaults are the paper's. Each has its line in
/// core/settings.h, from which everything else that names settings is made.
struct Config {
  int64_t levels = 3;          ///< L: level 0 is the tokens, level L-1 the roots
  int64_t pooling_factor = 4;  ///< p: children of an entry
  int64_t budget = 1536;       ///< k: entries refined at each level above 0
  int64_t tile_budget = 128;   ///< m: entries refined in each tile at each level; divides k
  Scorer scorer = Scorer::kNorm;
  int64_t dilation = 4;    ///< interleaved sub-sequences of the dilated scorer
  int64_t half_life = 16;  ///< tokens after which the state of the gla scorer is halved
  SelectionRule selection = SelectionRule::kPublished;
  std::optional<double> scale;  ///< of the inner attention; head_dim^(-1/2) if not given
  int64_t local = 0;  ///< W: tokens of a piece that attend to each other beside Lighthouse; 0: none
  int64_t local_shift = 0;  ///< the token at which the pieces begin to count; below local

  /// Throws std::invalid_argument, naming the setting, unless every setting is in its range.
  void validate() const;

  /// The settings of a model's layer: in every second one pieces begin half a piece later, so that
  /// what is a border in one layer is inside a piece in the next.
  Config of_layer(int64_t index) const;

  bool operator==(const Config&) const = default;
};

}  // namespace lighthouse
