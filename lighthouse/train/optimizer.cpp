#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>

namespace lighthouse::train {

AdamW::AdamW(model::LanguageModel& model, const run::OptimizerRecipe& recipe,
             at::ScalarType compute)
    : recipe_(recipe), copies_(compute != at::kFloat), groups_(2) {
  groups_[0].weight_decay = recipe.weight_decay;
  for (const auto& parameter : model.named_parameters()) {
    const at::Tensor weight = parameter.value().detach();
    Group& group = groups_[weight.dim() >= 2 ? 0 : 1];
    group.names.push_back(parameter.key());
    group.parameters.push_back(parameter.value());
    group.weights.push_back(copies_ ? weight.clone() : weight);
    group.exp_avgs.push_back(at::zeros_like(weight));
    group.exp_avg_sqs.push_back(at::zeros_like(weight));
  }
  step_ = at::zeros({}, groups_[0].weights[0].options());
  if (copies_) model.to(compute);
}

void AdamW::collect_gradients() {
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    std::vector<at::Tensor> found;
    for (at::Tensor& parameter : group.parameters) {
      found.push_back(parameter.grad());
      parameter.mutable_grad().reset();
    }
    if (group.gradients.empty()) {
      for (at::Tensor& gradient : found) gradient = gradient.to(at::kFloat);
      group.gradients = std::move(found);
    } else {
      at::_foreach_add_(group.gradients, found);
    }
  }
}

double AdamW::clip_gradients() {
  std::vector<at::Tensor> all;
  for (const Group& group : groups_) {
    all.insert(all.end(), group.gradients.begin(), group.gradients.end());
  }
  const double norm = at::stack(at::_foreach_norm(all)).norm().item<double>();
  if (norm > recipe_.max_grad_norm) at::_foreach_mul_(all, recipe_.max_grad_norm / norm);
  return norm;
}

void AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  step_.add_(1);
  for (Group& group : groups_) {
    const std::vector<at::Tensor> steps(group.weights.size(), step_);
    at::_fused_adamw_(group.weights, group.gradients, group.exp_avgs, group.exp_avg_sqs, {}, steps,
                      lr, recipe_.beta1, recipe_.beta2, group.weight_decay, recipe_.eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
  drop_gradients();
  publish_weights();
}

void AdamW::drop_gradients() {
  for (Group& group : groups_) group.gradients.clear();
}

void AdamW::publish_weights() {
  if (!copies_) return;
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) at::_foreach_copy_(group.parameters, group.weights);
}

std::map<std::string, at::Tensor> AdamW::weights() const {
  std::map<std::string, at::Tensor> all;
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.names.size(); ++i) all[group.names[i]] = group.weights[i];
  }
  return all;
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
