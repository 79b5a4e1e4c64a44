#include "lighthouse/run/recipe_changes.h"

#include <algorithm>

#include "lighthouse/core/check.h"
#include "lighthouse/run/recipe_fields.h"

namespace lighthouse::run {
namespace {

struct Change {
  std::string section, key;  ///< no key where one of the two has no such stage
  size_t stage;              ///< where the section is one
  std::string text;
};

std::vector<Change> changes(Recipe from, Recipe to) {
  const std::vector<Section> before = sections(from), after = sections(to);
  const size_t stages = std::min(from.stages.size(), to.stages.size());
  const size_t both = std::min(before.size(), after.size());
  std::vector<Change> found;
  for (size_t i = 0; i < both; ++i) {
    const size_t stage = before[i].stage != nullptr ? before[i].stage - from.stages.data() : 0;
    for (size_t j = 0; j < before[i].fields.size(); ++j) {
      const Field& field = before[i].fields[j];
      const std::string was = to_text(field.value), is = to_text(after[i].fields[j].value);
      if (field.about == Decides::kNothing || was == is) continue;
      found.push_back({before[i].name, field.key, stage,
                       message(before[i].name, ".", field.key, ": ", was, " -> ", is)});
    }
  }
  for (size_t i = both; i < std::max(before.size(), after.size()); ++i) {
    const bool gone = i < before.size();
    const Section& section = gone ? before[i] : after[i];
    found.push_back({section.name, "", stages + i - both,
                     message(section.name, ": ", gone ? "stage '" : "no stage -> stage '",
                             section.stage->name, gone ? "' -> no stage" : "'")});
  }
  return found;
}

/// The seconds of the run that a stage ends after.
double end_of(const Recipe& recipe, size_t stage) {
  double seconds = 0;
  for (size_t i = 0; i <= stage; ++i) seconds += recipe.stages[i].seconds;
  return seconds;
}

}  // namespace

std::vector<std::string> recipe_changes(const Recipe& recipe, const Checkpoint& checkpoint) {
  std::vector<std::string> texts;
  for (const Change& change : changes(checkpoint.recipe, recipe)) texts.push_back(change.text);
  return texts;
}

std::vector<std::string> branch_changes(const Recipe& recipe, const Checkpoint& checkpoint) {
  const std::vector<StageRecipe>& stages = checkpoint.recipe.stages;
  const std::vector<int64_t>& starts = checkpoint.stage_starts;
  const auto is_fixed = [&](const Change& change) {
    if (!change.section.starts_with("stage.")) {
      return change.section == "model" || change.section == "data";
    }
    if (change.stage >= starts.size()) return false;
    const bool under_way = change.stage + 1 == starts.size();
    if (!under_way || (change.key != "steps" && change.key != "seconds")) return true;
    // It may become longer or shorter, down to what is done of it.
    const StageRecipe& was = stages[change.stage];
    const StageRecipe& is = recipe.stages[change.stage];
    if (was.by_seconds() != is.by_seconds()) return true;
    return was.by_seconds()
               ? is.seconds < was.seconds && end_of(recipe, change.stage) < checkpoint.seconds
               : starts.back() + is.steps < checkpoint.step;
  };
  for (const Change& change : changes(checkpoint.recipe, recipe)) {
    check_argument(!is_fixed(change), change.text, " would change what was trained up to step ",
                   checkpoint.step, "; a branch can only change what comes later");
  }
  check_reaches(recipe, checkpoint);
  return recipe_changes(recipe, checkpoint);
}

void check_reaches(const Recipe& recipe, const Checkpoint& checkpoint) {
  check_argument(recipe.by_seconds() || recipe.total_steps() >= checkpoint.step, "the recipe has ",
                 recipe.total_steps(), " steps, and the checkpoint is already at step ",
                 checkpoint.step);
  check_argument(!recipe.by_seconds() || recipe.stages.size() >= checkpoint.stage_starts.size(),
                 "the recipe has ", recipe.stages.size(),
                 " stages, and the checkpoint is already in stage ",
                 checkpoint.stage_starts.size());
}

std::string joined(const std::vector<std::string>& changes) {
  std::string all;
  for (const std::string& change : changes) all += (all.empty() ? "" : "; ") + change;
  return all;
}

Recipe recipe_of(const Checkpoint& checkpoint, const Recipe& run) {
  Recipe recipe = checkpoint.recipe, other = run;
  other.stages = recipe.stages;  // they decide as a whole
  const std::vector<Section> ours = sections(recipe), theirs = sections(other);
  for (size_t i = 0; i < ours.size(); ++i) {
    for (size_t j = 0; j < ours[i].fields.size(); ++j) {
      if (ours[i].fields[j].about != Decides::kNothing) continue;
      copy_value(theirs[i].fields[j].value, ours[i].fields[j].value);
    }
  }
  return recipe;
}

}  // namespace lighthouse::run
