#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "lighthouse/run/recipe.h"

// The fields of a recipe: of this one list are made the defaults, the parser, the overrides, the
// help and the table.

namespace lighthouse::run {

/// The numbers that a field may be.
struct Range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above = false;  ///< `least` itself is out
  bool below = false;  ///< `most` itself is out

  bool holds(double value) const {
    return (above ? value > least : value >= least) && (below ? value < most : value <= most) &&
           std::isfinite(value);
  }
};

/// "above 0 and below 1"
std::ostream& operator<<(std::ostream& out, const Range& range);

/// A field that is one of some words in a file.
struct Word {
  std::string words;
  std::function<std::string()> get;
  std::function<void(const std::string&)> set;  ///< throws std::invalid_argument
};

/// One string of a file, or a list of them.
using Paths = std::vector<std::string>;

using Value =
    std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*, Paths*, Word>;

/// What of a run a field decides about.
enum class Decides {
  kWeights,     ///< the weights that come out of training
  kLighthouse,  ///< the weights too, where the stage's attention is Lighthouse
  kNotDense,    ///< the weights too, where the stage's attention is not dense
  kNothing,     ///< else: where things are, what is measured and saved when, and how ranks share
};

struct Field {
  std::string key;
  Value value;
  Range range;
  const char* help;
  Decides about = Decides::kWeights;
};

struct Section {
  std::string name;
  std::vector<Field> fields;
  const StageRecipe* stage = nullptr;  ///< where it is one
};

/// The fields of [model]; they point into the recipe.
Section model_section(Recipe& recipe);

/// All fields of a recipe; they point into it.
std::vector<Section> sections(Recipe& recipe);

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

/// What a value must be, as a message says it.
std::string type_name(const Value& value);

/// Gives a field the value of the same field of another recipe.
void copy_value(const Value& from, const Value& to);

/// As in a file.
std::string to_text(const Value& value);

/// Throws std::invalid_argument unless the field's number is in its range. `where` begins the
/// message.
void check_range(const Field& field, const std::string& section, const std::string& where = "");

/// The error's message, after what it is about.
template <class Check>
void check_part(const std::string& part, const Check& check) {
  try {
    check();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(part + ": " + error.what());
  }
}

}  // namespace lighthouse::run
