#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::run {

/// What one step of a stage computes. The tokens of a step are the same throughout the stage.
struct StepPlan {
  nn::Mode attention;
  int64_t sequences;      ///< of the step
  int64_t context;        ///< tokens of each
  int64_t micro_batch;    ///< sequences at a time
  int64_t documents = 0;  ///< that a sequence may have, where attention stays within them; else 0

  // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 that it is compared with for a pointer
  auto operator<=>(const StepPlan&) const = default;
};

/// The documents that a sequence of `context` tokens may have where its recipe does not say: one
/// for 256 tokens, but at least 16.
int64_t default_documents(int64_t context);

/// Why no step of a stage that asks for Lighthouse computes it; empty where some do, or where it
/// asks for none.
std::string dense_because(const StageRecipe& stage);

/// The attention of the stage's steps that are not of its dense share: what it asks for, or dense
/// where Lighthouse cannot pay.
nn::Mode computed_attention(const StageRecipe& stage);

/// Layers of a model of that many that are dense in the stage's steps: all where it is dense.
int64_t count_dense_layers(const StageRecipe& stage, int64_t layers);

/// Rows S of the gathered sequence in the stage's layers; 0 where none has Lighthouse.
int64_t rows_of(const StageRecipe& stage);

/// Tokens W of the pieces in the stage's layers; 0 where they have none.
int64_t pieces_of(const StageRecipe& stage);

/// The pairs of positions that attention compares in a step of the stage, as a share of those of
/// dense attention, over all layers of a model of that many: 1 of a dense one, (S/N)^2 of one with
/// Lighthouse, W/N of one with pieces, or both. Of sequences of one document each: more have fewer.
double attention_area(const StageRecipe& stage, int64_t layers);

/// "dense", "lighthouse", "lighthouse, local 2048" or "local 2048"
std::string attention_name(nn::Mode attention, int64_t local);

/// Steps of warm-up that a stage has where its recipe does not say: 20, but at most a quarter of
/// its steps, where its attention, its pieces or its context are not those of the stage before;
/// else none.
int64_t default_warmup_steps(const StageRecipe& stage, const StageRecipe& before);

/// The plan of a stage's step, counted from 0 in the stage. The dense share of the steps is spread
/// evenly, by the step's number alone: of the first n steps, floor(n dense_share) are dense.
StepPlan step_plan(const StageRecipe& stage, int64_t step);

/// The attention of the stage's steps that are not of its dense share.
model::AttentionPlan attention_plan(const StageRecipe& stage);

}  // namespace lighthouse::run
