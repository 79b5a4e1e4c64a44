#pragma once

#include <array>
#include <string>
#include <string_view>

#include "lighthouse/core/check.h"

namespace lighthouse {

/// The words for the values of an enumeration, in the order of the values: in recipes, options and
/// messages. An enumeration that has words specializes it:
///
///     template <>
///     inline constexpr std::array kWords<Color>{"red", "green"};
template <class Enum>
inline constexpr std::array<const char*, 0> kWords{};

template <class Enum>
concept HasWords = !kWords<Enum>.empty();

template <HasWords Enum>
constexpr std::string_view to_string(Enum value) {
  return kWords<Enum>[static_cast<size_t>(value)];
}

/// "red, green"
template <HasWords Enum>
std::string all_words() {
  std::string all;
  for (const char* word : kWords<Enum>) all += (all.empty() ? "" : ", ") + std::string(word);
  return all;
}

/// The value that `word` stands for.
/// @param name of what is set to it, for the message
/// @throws std::invalid_argument, listing the words, where it is none of them
template <HasWords Enum>
Enum parse_word(std::string_view word, std::string_view name) {
  std::string choices;
  for (size_t i = 0; i < kWords<Enum>.size(); ++i) {
    if (word == kWords<Enum>[i]) return static_cast<Enum>(i);
    choices += message(i == 0                        ? "'"
                       : i + 1 < kWords<Enum>.size() ? ", '"
                                                     : " or '",
                       kWords<Enum>[i], "'");
  }
  throw std::invalid_argument(message(name, " is '", word, "'; it must be ", choices));
}

}  // namespace lighthouse
