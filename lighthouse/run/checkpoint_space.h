#pragma once

#include <cstdint>
#include <string>

#include "lighthouse/run/recipe.h"
#include "lighthouse/run/run_folder.h"

namespace lighthouse::run {

/// Bytes of a checkpoint of the recipe: weights and two moments in float32.
double checkpoint_bytes(const Recipe& recipe);

/// Whether a run's checkpoints fit on a disk with `free` bytes free. A checkpoint is written
/// before an older one is removed, so that run.keep_checkpoints + 1 must fit, and those that are
/// kept for good, which are not counted of a run by seconds.
/// @param present checkpoints of the run that are on the disk already
/// @param where names the disk in messages
/// @return a warning; empty where all fit
/// @throws std::invalid_argument where there is not even room for one more
std::string check_checkpoint_space(const Recipe& recipe, int64_t present, double free,
                                   const std::string& where);

/// The same of the disk of the run's folder, which need not exist yet. A disk that does not say
/// what is free is taken to have room.
std::string check_checkpoint_space(const Recipe& recipe, const RunFolder& folder);

}  // namespace lighthouse::run
