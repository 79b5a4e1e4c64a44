#include "lighthouse/train/step.h"

#include <ATen/ATen.h>

#include <cmath>

namespace lighthouse::train {

StepResult train_step(model::Llama& model, AdamW& optimizer, const data::Batch& batch,
                      const StepPlan& plan, const OptimizerRecipe& recipe, double lr) {
  const at::Device device = model->parameters().front().device();
  const auto tokens = static_cast<double>(batch.tokens.numel());
  at::Tensor loss;
  for (int64_t begin = 0; begin < plan.sequences; begin += plan.micro_batch) {
    const auto part_of = [&](const at::Tensor& all) {
      return all.narrow(0, begin, plan.micro_batch).to(device);
    };
    const at::Tensor part =
        model->token_losses(part_of(batch.tokens), part_of(batch.targets), recipe.z_loss)
            .sum()
            .div(tokens);
    part.backward();
    optimizer.collect_gradients();
    loss = loss.defined() ? loss + part.detach() : part.detach();
  }
  StepResult result{};
  result.grad_norm = optimizer.clip_gradients();
  result.loss = loss.item<double>();
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
