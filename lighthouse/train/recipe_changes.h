#pragma once

#include <string>
#include <vector>

#include "lighthouse/train/checkpoint.h"
#include "lighthouse/train/recipe.h"

// What a run has in common with the checkpoint that it goes on from.

namespace lighthouse::train {

/// The part of a recipe that decides about the weights: without its paths, since folders move (a
/// fingerprint tells whether the text is the same), and without what is measured and saved when.
std::string resume_key(Recipe recipe);

/// "[optimizer]: beta1 = 0.9 -> beta1 = 0.5" for every line that differs from the checkpoint's.
std::vector<std::string> recipe_changes(const Recipe& recipe, const Checkpoint& checkpoint);

/// The same, where the recipe may change what comes after the checkpoint. Throws
/// std::invalid_argument naming a change that reaches into what was trained already.
std::vector<std::string> branch_changes(const Recipe& recipe, const Checkpoint& checkpoint);

}  // namespace lighthouse::train
