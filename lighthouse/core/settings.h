#pragma once

#include <string>
#include <variant>

#include "lighthouse/core/config.h"

namespace lighthouse {

/// A field of Config: its name, what it may be, and what it means.
struct Setting {
  const char* name;
  std::variant<int64_t Config::*, Scorer Config::*, SelectionRule Config::*,
               std::optional<double> Config::*>
      field;
  int64_t least;  ///< smallest value of an integer setting
  const char* help;
};

/// The one list of settings. Of it are made Config::validate, the keys of a recipe's stages, the
/// options of the bench, the schemas of the operators, and every table that shows settings.
inline constexpr Setting kSettings[] = {
    {"levels", &Config::levels, 1, "levels of the pyramid"},
    {"pooling_factor", &Config::pooling_factor, 2, "children of an entry"},
    {"budget", &Config::budget, 1, "entries refined at each level"},
    {"tile_budget", &Config::tile_budget, 1, "entries refined in each tile; divides budget"},
    {"scorer", &Config::scorer, 0, "what scores a token"},
    {"dilation", &Config::dilation, 1, "interleaved sub-sequences of the dilated scorer"},
    {"half_life", &Config::half_life, 1,
     "tokens after which the state of the gla scorer is halved"},
    {"selection", &Config::selection, 0, "whose scores judge an entry: its own, or the one before"},
    {"scale", &Config::scale, 0, "of attention; head_dim^(-1/2) where there is none"},
    {"local", &Config::local, 0, "tokens of pieces that attend to themselves too; 0: none"},
    {"local_shift", &Config::local_shift, 0, "the token where a piece begins; below local"},
};

/// Calls `visit(setting, value)` for every setting, with the value as it is in `config`, which may
/// be const.
template <class AnyConfig, class Visit>
void for_each_setting(AnyConfig& config, const Visit& visit) {
  for (const Setting& setting : kSettings) {
    std::visit([&](auto field) { visit(setting, config.*field); }, setting.field);
  }
}

/// A setting's value as text; "none" where it is not given.
std::string to_text(int64_t value);
std::string to_text(const std::optional<double>& value);
template <HasWords Enum>
std::string to_text(Enum value) {
  return std::string(to_string(value));
}

/// "levels=3, pooling_factor=4, ..."
std::string describe(const Config& config);

}  // namespace lighthouse
