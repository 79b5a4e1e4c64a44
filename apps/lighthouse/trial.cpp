#include "apps/lighthouse/trial.h"

#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>

#include <optional>

#include "apps/lighthouse/exchange_clock.h"
#include "apps/lighthouse/peak_memory.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/train/step.h"

namespace lighthouse::app {

at::Tensor long_documents(const run::StageRecipe& stage, int64_t sequences, at::Device device) {
  if (stage.documents_per_row == 0) return {};
  at::Tensor starts = at::full({sequences, stage.documents_per_row}, stage.context,
                               at::TensorOptions(at::kInt).device(device));
  starts.select(1, 0).zero_();
  return starts;
}

Trial run_trial(const run::Recipe& recipe, const run::StageRecipe& stage, const Rank& rank,
                int steps) {
  Trial trial;
  const PeakMemory memory(rank.device);
  const auto model = run::new_model(recipe, rank.device);
  train::AdamW optimizer(*model, recipe.optimizer, run::scalar_type(recipe.run.dtype), rank.world,
                         recipe.parallel.shard_optimizer);
  model->set_attention(run::attention_plan(recipe, stage, rank.mesh.context));
  const run::StepPlan plan{run::computed_attention(stage), stage.batch, stage.context,
                           stage.sequences_at_once(), stage.documents_per_row};
  const at::Tensor tokens = at::randint(recipe.model.vocab_size, {stage.batch, stage.context + 1},
                                        at::TensorOptions(at::kLong).device(rank.device));
  data::Batch batch{tokens.narrow(1, 0, stage.context), tokens.narrow(1, 1, stage.context)};
  batch.document_starts = long_documents(stage, stage.batch, rank.device);
  if (recipe.data.positions == data::Positions::kDocument) {
    batch.positions = batch.places_in_documents().contiguous();
  }
  train::StepGraphs graphs(*model);
  std::optional<ExchangeClock> exchanges;
  for (int i = -2; i < steps; ++i) {
    if (i == 0 && rank.world.size() > 1) exchanges.emplace(rank.device);
    const auto start = std::chrono::steady_clock::now();
    train::train_step(*model, optimizer, rank.mesh.data, batch, plan, recipe.optimizer,
                      recipe.optimizer.lr, recipe.run.cuda_graphs ? &graphs : nullptr);
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - start;
    if (i >= 0) trial.step.add(spent.count());
  }
  if (exchanges) trial.waits = exchanges->milliseconds();
  exchanges.reset();
  for (auto& [what, milliseconds] : trial.waits) {
    milliseconds /= steps;
    trial.waiting += milliseconds;
    milliseconds = rank.world.max(milliseconds);  // all ranks make the same exchanges
  }
  trial.waiting = rank.world.max(trial.waiting);
  trial.step.map([&](double step) { return rank.world.max(step); });
  trial.peak_bytes = rank.world.max(memory.peak_bytes());
  return trial;
}

}  // namespace lighthouse::app
