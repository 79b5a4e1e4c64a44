#include "lighthouse/core/config.h"

#include <algorithm>
#include <cmath>

#include "lighthouse/core/settings.h"

namespace lighthouse {
namespace {

void check_range(const Setting& setting, int64_t value) {
  check_argument(value >= setting.least, setting.name, " is ", value, "; it must be at least ",
                 setting.least);
}

void check_range(const Setting& setting, const std::optional<double>& value) {
  check_argument(!value || std::isfinite(*value), setting.name, " is ", to_text(value),
                 "; it must be finite");
}

template <HasWords Enum>
void check_range(const Setting& /*setting*/, Enum /*value*/) {}

}  // namespace

void Config::validate() const {
  for_each_setting(*this,
                   [](const Setting& setting, const auto& value) { check_range(setting, value); });
  check_argument(budget % tile_budget == 0, "budget is ", budget,
                 "; it must be a multiple of tile_budget, which is ", tile_budget);
  check_argument(local_shift < std::max<int64_t>(local, 1), "local_shift is ", local_shift,
                 "; it must be below local, which is ", local,
                 local == 0 ? ", or 0 where there are no pieces" : "");
}

Config Config::of_layer(int64_t index) const {
  Config config = *this;
  config.local_shift = index % 2 == 0 ? 0 : local / 2;
  return config;
}

std::string to_text(int64_t value) { return std::to_string(value); }

std::string to_text(const std::optional<double>& value) { return value ? message(*value) : "none"; }

std::string describe(const Config& config) {
  std::string text;
  for_each_setting(config, [&](const Setting& setting, const auto& value) {
    text += message(text.empty() ? "" : ", ", setting.name, "=", to_text(value));
  });
  return text;
}

}  // namespace lighthouse
