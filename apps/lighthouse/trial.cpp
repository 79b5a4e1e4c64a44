#include "apps/lighthouse/trial.h"

#include <ATen/ops/randint.h>

#include "apps/lighthouse/peak_memory.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/train/step.h"

namespace lighthouse::app {

Trial run_trial(const run::Recipe& recipe, const run::StageRecipe& stage, c10::Device device,
                int steps) {
  Trial trial;
  const PeakMemory memory(device);
  const auto model = run::new_model(recipe, device);
  train::AdamW optimizer(*model, recipe.optimizer, run::scalar_type(recipe.run.dtype));
  model->set_attention(run::attention_plan(stage));
  const run::StepPlan plan{run::computed_attention(stage), stage.batch, stage.context,
                           stage.sequences_at_once()};
  const at::Tensor tokens = at::randint(recipe.model.vocab_size, {stage.batch, stage.context + 1},
                                        at::TensorOptions(at::kLong).device(device));
  const data::Batch batch{tokens.narrow(1, 0, stage.context), tokens.narrow(1, 1, stage.context)};
  train::StepGraphs graphs(*model);
  for (int i = -2; i < steps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    train::train_step(*model, optimizer, batch, plan, recipe.optimizer, recipe.optimizer.lr,
                      recipe.run.cuda_graphs ? &graphs : nullptr);
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - start;
    if (i >= 0) trial.step.add(spent.count());
  }
  trial.peak_bytes = memory.peak_bytes();
  return trial;
}

}  // namespace lighthouse::app
