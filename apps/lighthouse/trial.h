#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "apps/lighthouse/clock.h"
#include "apps/lighthouse/rank.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::app {

/// What some training steps took.
struct Trial {
  Times step;          ///< what each took on the slowest rank
  double waiting = 0;  ///< milliseconds of a step (ExchangeClock); the most of any rank
  std::map<std::string, double> waits;  ///< the same for each kind of exchange
  int64_t peak_bytes = 0;  ///< of the model and its optimizer too; the most of any rank
};

/// What a verb says where attention stays within documents.
inline constexpr const char* kLongDocuments =
    "Every sequence is one document here, which costs attention the most; several cost it less.\n";

/// The starts of documents in sequences of the stage, each of which is one, the longest there can
/// be; undefined where attention crosses documents.
at::Tensor long_documents(const run::StageRecipe& stage, int64_t sequences, at::Device device);

/// Trains the recipe's model for two steps and then, timed, `steps` more, as the stage does, on
/// random tokens, each sequence of one document. All ranks call it; they can run the recipe
/// (run::check_ranks).
Trial run_trial(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank,
                int steps);

}  // namespace lighthouse::app
