#include "lighthouse/run/stage.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lighthouse/core/check.h"
#include "lighthouse/core/geometry.h"

namespace lighthouse::run {

namespace {

/// As the geometry of attention has them.
int64_t documents_of(const StageRecipe& stage) {
  return std::max<int64_t>(1, stage.documents_per_row);
}

}  // namespace

int64_t default_documents(int64_t context) {
  constexpr int64_t kTokens = 256, kLeast = 16;
  return std::min(context, std::max(kLeast, context / kTokens));
}

std::string dense_because(const StageRecipe& stage) {
  if (stage.attention == nn::Mode::kDense) return "";
  if (stage.dense_share == 1) return "its dense_share is 1";
  if (stage.attention == nn::Mode::kLocal) return "";
  return lighthouse::dense_because(stage.context, stage.config, documents_of(stage));
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

int64_t rows_of(const StageRecipe& stage) {
  if (computed_attention(stage) != nn::Mode::kLighthouse) return 0;
  return Geometry(stage.context, stage.config, documents_of(stage)).rows;
}

int64_t pieces_of(const StageRecipe& stage) {
  return computed_attention(stage) == nn::Mode::kDense ? 0 : stage.config.local;
}

double attention_area(const StageRecipe& stage, int64_t layers) {
  if (computed_attention(stage) == nn::Mode::kDense) return 1;
  const auto tokens = static_cast<double>(stage.context);
  const double rows = static_cast<double>(rows_of(stage)) / tokens;
  const double pieces = std::min(1.0, static_cast<double>(pieces_of(stage)) / tokens);
  const double dense =
      static_cast<double>(count_dense_layers(stage, layers)) / static_cast<double>(layers);
  return dense + (1 - dense) * (rows * rows + pieces);
}

std::string attention_name(nn::Mode attention, int64_t local) {
  const std::string name(to_string(attention));
  if (attention == nn::Mode::kLocal) return message(name, ' ', local);
  return local > 0 ? message(name, ", local ", local) : name;
}

int64_t default_warmup_steps(const StageRecipe& stage, const StageRecipe& before) {
  constexpr int64_t kSteps = 20;
  const nn::Mode attention = computed_attention(stage);
  const bool same_pieces =
      attention == nn::Mode::kDense || stage.config.local == before.config.local;
  if (attention == computed_attention(before) && same_pieces && stage.context == before.context) {
    return 0;
  }
  return stage.by_seconds() ? kSteps : std::min(kSteps, stage.steps / 4);
}

StepPlan step_plan(const StageRecipe& stage, int64_t step) {
  const auto dense_steps = [&](int64_t steps) {
    return std::floor(static_cast<double>(steps) * stage.dense_share);
  };
  const int64_t micro_batch = stage.sequences_at_once();
  if (dense_steps(step + 1) == dense_steps(step)) {
    return {computed_attention(stage), stage.batch, stage.context, micro_batch,
            stage.documents_per_row};
  }
  const int64_t pieces = stage.context / stage.dense_context;
  return {nn::Mode::kDense, stage.batch * pieces, stage.dense_context, micro_batch * pieces,
          std::min(stage.documents_per_row, stage.dense_context)};
}

model::AttentionPlan attention_plan(const StageRecipe& stage) {
  const nn::Mode attention = computed_attention(stage);
  if (attention == nn::Mode::kDense) return {};
  return {attention, stage.config, stage.dense_layers};
}

}  // namespace lighthouse::run
