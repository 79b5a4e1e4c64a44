#include "lighthouse/train/recipe_changes.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::train {
namespace {

constexpr size_t kModel = 0, kData = 1, kStages = 4;  ///< sections of a recipe in a file

/// A section, [model], [data], [optimizer], [run] or a stage: its name, and its lines by key.
struct Section {
  std::string name;
  std::vector<std::pair<std::string, std::string>> lines;

  std::string line(const std::string& key) const {
    const auto found = std::ranges::find(lines, key, [](const auto& line) { return line.first; });
    return found == lines.end() ? "nothing" : found->second;
  }
};

std::vector<Section> sections_of(const std::string& toml) {
  std::vector<Section> sections;
  std::istringstream lines(toml);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[[")) {
      sections.push_back({message("stage.", sections.size() - kStages), {}});
    } else if (line.starts_with('[')) {
      sections.push_back({line, {}});
    } else if (!line.empty()) {
      sections.back().lines.emplace_back(line.substr(0, line.find(' ')), line);
    }
  }
  return sections;
}

/// A line that differs.
struct Change {
  std::string key, text;
};

std::vector<Change> changes(const Section& from, const Section& to) {
  std::vector<Change> found;
  const auto compare = [&](const std::string& key) {
    const std::string before = from.line(key), after = to.line(key);
    if (before != after) found.push_back({key, before + " -> " + after});
  };
  for (const auto& [key, line] : to.lines) compare(key);
  for (const auto& [key, line] : from.lines) {
    if (to.line(key) == "nothing") compare(key);
  }
  return found;
}

/// Calls `visit` with the index of each section, its name, and each change in it.
template <class Visit>
void for_each_change(const Recipe& recipe, const Checkpoint& checkpoint, const Visit& visit) {
  const auto ours = sections_of(resume_key(recipe)), theirs = sections_of(checkpoint.recipe);
  for (size_t i = 0; i < std::max(ours.size(), theirs.size()); ++i) {
    const Section& to = i < ours.size() ? ours[i] : Section{};
    const Section& from = i < theirs.size() ? theirs[i] : Section{};
    const std::string& name = to.name.empty() ? from.name : to.name;
    for (const Change& change : changes(from, to)) visit(i, name, change);
  }
}

}  // namespace

std::string resume_key(Recipe recipe) {
  const RunRecipe defaults;
  RunRecipe& run = recipe.run;
  run.out.clear();
  recipe.data.path.clear();
  recipe.init_from.clear();
  run.cuda_graphs = defaults.cuda_graphs;
  run.eval_sequences = defaults.eval_sequences;
  run.eval_every_steps = defaults.eval_every_steps;
  run.checkpoint_every_steps = defaults.checkpoint_every_steps;
  run.keep_checkpoints = defaults.keep_checkpoints;
  run.keep_every_steps = defaults.keep_every_steps;
  run.log_every_steps = defaults.log_every_steps;
  return recipe.to_toml();
}

std::vector<std::string> recipe_changes(const Recipe& recipe, const Checkpoint& checkpoint) {
  std::vector<std::string> all;
  for_each_change(recipe, checkpoint, [&](size_t, const std::string& name, const Change& change) {
    all.push_back(message(name, ": ", change.text));
  });
  return all;
}

std::vector<std::string> branch_changes(const Recipe& recipe, const Checkpoint& checkpoint) {
  const std::vector<Section> theirs = sections_of(checkpoint.recipe);
  const auto steps_of = [&](size_t stage) {
    const std::string line = theirs.at(kStages + stage).line("steps");
    return std::stoll(line.substr(line.find('=') + 1));
  };
  const auto is_fixed = [&](size_t section, const Change& change) {
    if (section < kStages) return section == kModel || section == kData;
    int64_t begins = 0;  // with the checkpoint's step counts: what was trained, not what is wanted
    for (size_t i = 0; i < section - kStages && kStages + i < theirs.size(); ++i) {
      begins += steps_of(i);
    }
    if (section >= theirs.size() || begins >= checkpoint.step) return false;
    if (change.key != "steps" || section - kStages >= recipe.stages.size()) return true;
    // The stage under way may become longer or shorter, down to what is done of it.
    const size_t stage = section - kStages;
    return begins + steps_of(stage) < checkpoint.step ||
           begins + recipe.stages[stage].steps < checkpoint.step;
  };
  for_each_change(recipe, checkpoint,
                  [&](size_t section, const std::string& name, const Change& change) {
                    check_argument(!is_fixed(section, change), name, " would change, ", change.text,
                                   ", which was trained already at step ", checkpoint.step,
                                   "; a branch may change what comes later");
                  });
  check_argument(recipe.total_steps() >= checkpoint.step, "the recipe has ", recipe.total_steps(),
                 " steps; the checkpoint to branch from has done ", checkpoint.step);
  return recipe_changes(recipe, checkpoint);
}

}  // namespace lighthouse::train
