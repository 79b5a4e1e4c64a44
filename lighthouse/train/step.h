#pragma once

#include "lighthouse/data/batch.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/train/optimizer.h"
#include "lighthouse/train/step_graphs.h"

namespace lighthouse::train {

struct StepResult {
  double loss;       ///< mean per token that has a target, of all ranks together; nats
  double grad_norm;  ///< before clipping
  bool skipped;      ///< the weights are as they were
};

/// Forward and backward over a batch, a micro-batch at a time, then the update. The update is
/// skipped where the loss or the gradient norm is not finite, or the norm is above
/// recipe.skip_grad_norm. The model has the attention of the plan. Each of the optimizer's ranks
/// computes its share: of the sequences, and of each sequence the part that the model's context
/// says. The result is the same on all of them.
/// @param data the ranks that share the sequences out (Mesh::data)
/// @param batch the whole batch on every rank, on any device. The ranks divide its sequences, and
///        micro-batches those of a rank
/// @param graphs where given, passes are replayed from them, the same but for their speed
StepResult train_step(model::LanguageModel& model, AdamW& optimizer, const distributed::World& data,
                      const data::Batch& batch, const run::StepPlan& plan,
                      const run::OptimizerRecipe& recipe, double lr, StepGraphs* graphs = nullptr);

}  // namespace lighthouse::train
