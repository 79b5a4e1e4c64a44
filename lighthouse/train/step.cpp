#include "lighthouse/train/step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace lighthouse::train {

StepResult train_step(model::LanguageModel& model, AdamW& optimizer, const distributed::World& data,
                      const data::Batch& batch, const run::StepPlan& plan,
                      const run::OptimizerRecipe& recipe, double lr, StepGraphs* graphs) {
  // A graph holds the divisor of its pass: what does not count is made up for at the end.
  const auto tokens = static_cast<double>(batch.tokens.numel());
  const double of_counted = tokens / static_cast<double>(batch.count_targets());
  const auto pass = [&](const data::Batch& part) {
    const at::Tensor loss = model.token_losses(part, recipe.z_loss).sum().div(tokens);
    loss.backward();
    return loss.detach();
  };
  const int64_t sequences = plan.sequences / data.size();
  const int64_t at_once = std::min(plan.micro_batch, sequences);
  at::Tensor loss;
  for (int64_t i = 0; i < sequences; i += at_once) {
    const int64_t begin = data.rank() * sequences + i;
    const data::Batch micro_batch = model.part_of(batch.rows(begin, at_once)).to(model.device());
    const at::Tensor part =
        graphs != nullptr ? graphs->run(plan, micro_batch, pass) : pass(micro_batch);
    optimizer.collect_gradients();
    loss = loss.defined() ? loss + part : part;
  }
  StepResult result{};
  optimizer.reduce_gradients();
  if (of_counted != 1) optimizer.scale_gradients(of_counted);
  result.grad_norm = optimizer.clip_gradients();
  result.loss = optimizer.world().sum(loss.item<double>()) * of_counted;
  const bool spike = recipe.skip_grad_norm > 0 && result.grad_norm > recipe.skip_grad_norm;
  result.skipped = spike || !std::isfinite(result.loss) || !std::isfinite(result.grad_norm);
  if (result.skipped) {
    optimizer.drop_gradients();
  } else {
    optimizer.step(lr);
  }
  return result;
}

}  // namespace lighthouse::train
