#include "lighthouse/run/stage.h"

#include <cmath>
#include <set>

#include "lighthouse/core/geometry.h"

namespace lighthouse::run {

std::string dense_because(const StageRecipe& stage) {
  if (stage.attention == nn::Mode::kDense) return "";
  if (stage.dense_share == 1) return "its dense_share is 1";
  return lighthouse::dense_because(stage.context, stage.config);
}

nn::Mode computed_attention(const StageRecipe& stage) {
  return dense_because(stage).empty() ? stage.attention : nn::Mode::kDense;
}

int64_t count_dense_layers(const StageRecipe& stage, int64_t layers) {
  if (computed_attention(stage) == nn::Mode::kDense) return layers;
  std::set<int64_t> dense;
  for (const int64_t layer : stage.dense_layers) dense.insert((layer + layers) % layers);
  return static_cast<int64_t>(dense.size());
}

StepPlan step_plan(const StageRecipe& stage, int64_t step) {
  const auto dense_steps = [&](int64_t steps) {
    return std::floor(static_cast<double>(steps) * stage.dense_share);
  };
  const int64_t micro_batch = stage.sequences_at_once();
  if (dense_steps(step + 1) == dense_steps(step)) {
    return {computed_attention(stage), stage.batch, stage.context, micro_batch};
  }
  const int64_t pieces = stage.context / stage.dense_context;
  return {nn::Mode::kDense, stage.batch * pieces, stage.dense_context, micro_batch * pieces};
}

model::AttentionPlan attention_plan(const StageRecipe& stage) {
  const nn::Mode attention = computed_attention(stage);
  if (attention == nn::Mode::kDense) return {};
  return {attention, stage.config, stage.dense_layers};
}

}  // namespace lighthouse::run
