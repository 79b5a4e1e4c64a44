#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>

namespace lighthouse::train {
namespace {

std::vector<at::Tensor> gradients(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> all;
  all.reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) all.push_back(parameter.grad());
  return all;
}

}  // namespace

AdamW::AdamW(model::Llama& model, const OptimizerRecipe& recipe)
    : recipe_(recipe),
      groups_{{recipe.weight_decay, {}, {}, {}, {}}, {0, {}, {}, {}, {}}},
      step_(at::zeros({}, at::kFloat)) {
  for (const auto& parameter : model->named_parameters()) {
    Group& group = groups_[parameter.value().dim() >= 2 ? 0 : 1];
    group.names.push_back(parameter.key());
    group.parameters.push_back(parameter.value());
    group.exp_avgs.push_back(at::zeros_like(parameter.value()));
    group.exp_avg_sqs.push_back(at::zeros_like(parameter.value()));
  }
}

double AdamW::clip_gradients() {
  std::vector<at::Tensor> all;
  for (const Group& group : groups_) {
    for (const at::Tensor& gradient : gradients(group.parameters)) all.push_back(gradient);
  }
  const double norm = at::stack(at::_foreach_norm(all)).norm().item<double>();
  if (norm > recipe_.max_grad_norm) at::_foreach_mul_(all, recipe_.max_grad_norm / norm);
  return norm;
}

void AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  step_.add_(1);
  for (Group& group : groups_) {
    const std::vector<at::Tensor> steps(group.parameters.size(), step_);
    at::_fused_adamw_(group.parameters, gradients(group.parameters), group.exp_avgs,
                      group.exp_avg_sqs, {}, steps, lr, recipe_.beta1, recipe_.beta2,
                      group.weight_decay, recipe_.eps, /*amsgrad=*/false, /*maximize=*/false);
    for (at::Tensor& parameter : group.parameters) parameter.mutable_grad().reset();
  }
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> all{{"step", step_}};
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.names.size(); ++i) {
      all["exp_avg." + group.names[i]] = group.exp_avgs[i];
      all["exp_avg_sq." + group.names[i]] = group.exp_avg_sqs[i];
    }
  }
  return all;
}

}  // namespace lighthouse::train
