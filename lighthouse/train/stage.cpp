#include "lighthouse/train/stage.h"

#include <cmath>

namespace lighthouse::train {

StepPlan step_plan(const StageRecipe& stage, int64_t step) {
  const auto dense_steps = [&](int64_t steps) {
    return std::floor(static_cast<double>(steps) * stage.dense_share);
  };
  const int64_t micro_batch = stage.sequences_at_once();
  if (dense_steps(step + 1) == dense_steps(step)) {
    return {stage.lighthouse, stage.batch, stage.context, micro_batch};
  }
  const int64_t pieces = stage.context / stage.dense_context;
  return {false, stage.batch * pieces, stage.dense_context, micro_batch * pieces};
}

model::AttentionPlan attention_plan(const StageRecipe& stage) {
  if (!stage.lighthouse) return {};
  return {nn::Mode::kLighthouse, stage.attention, stage.dense_layers};
}

const char* attention_name(bool lighthouse) { return lighthouse ? "lighthouse" : "dense"; }

}  // namespace lighthouse::train
