#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lighthouse/distributed/world.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::train {

struct Start;

/// Names, and values as a message says them.
using Facts = std::vector<std::pair<std::string, std::string>>;

/// What every rank must have alike before the first one touches the run: the program and PyTorch
/// (versions and builds), where the run begins, and the recipe without its paths and the number of
/// the GPU.
Facts facts_of(const run::Recipe& recipe, const Start& start);

/// Throws std::invalid_argument on every rank unless all have the same facts: it names a rank that
/// differs from most, its host, what differs, and both values.
void check_agreement(const distributed::World& world, const Facts& facts);

}  // namespace lighthouse::train
