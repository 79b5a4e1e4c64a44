#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "lighthouse/model/llama.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// What one step of a stage computes. The tokens of a step are the same throughout the stage.
struct StepPlan {
  nn::Mode attention;
  int64_t sequences;    ///< of the step
  int64_t context;      ///< tokens of each
  int64_t micro_batch;  ///< sequences at a time

  // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 that it is compared with for a pointer
  auto operator<=>(const StepPlan&) const = default;
};

/// Why no step of a stage that asks for Lighthouse computes it; empty where some do, or where it
/// asks for none.
std::string dense_because(const StageRecipe& stage);

/// The attention of the stage's steps that are not of its dense share: what it asks for, or dense
/// where Lighthouse cannot pay.
nn::Mode computed_attention(const StageRecipe& stage);

/// Layers of a model of that many that are dense in the stage's steps: all where it is dense.
int64_t count_dense_layers(const StageRecipe& stage, int64_t layers);

/// The plan of a stage's step, counted from 0 in the stage. The dense share of the steps is spread
/// evenly, by the step's number alone: of the first n steps, floor(n dense_share) are dense.
StepPlan step_plan(const StageRecipe& stage, int64_t step);

/// The attention of the stage's steps that are not of its dense share.
model::AttentionPlan attention_plan(const StageRecipe& stage);

}  // namespace lighthouse::run
