#pragma once

#include <string>
#include <vector>

#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/recipe.h"

// What a run has in common with the checkpoint that it goes on from.

namespace lighthouse::run {

/// "optimizer.beta1: 0.9 -> 0.5" for every field that decides about the weights and is not as in
/// the checkpoint, and a line for every stage that one of the two lacks.
std::vector<std::string> recipe_changes(const Recipe& recipe, const Checkpoint& checkpoint);

/// The same, where the recipe may change what comes after the checkpoint. Throws
/// std::invalid_argument naming a change that reaches into what was trained already.
std::vector<std::string> branch_changes(const Recipe& recipe, const Checkpoint& checkpoint);

/// Throws std::invalid_argument where the recipe ends before the checkpoint.
void check_reaches(const Recipe& recipe, const Checkpoint& checkpoint);

/// In one sentence.
std::string joined(const std::vector<std::string>& changes);

/// The recipe that the checkpoint was made with: what decides about the weights as it was then, the
/// rest (paths, what is measured and saved when) as the run has it now.
Recipe recipe_of(const Checkpoint& checkpoint, const Recipe& run);

}  // namespace lighthouse::run
