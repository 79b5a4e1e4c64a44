#include "lighthouse/train/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "lighthouse/run/checkpoint.h"

namespace lighthouse::train {
namespace {

/// Parameters and the parts of ranks begin at its multiples, in elements: the kernels then read
/// whole vectors, and update an element to the same bits wherever the parts are cut.
constexpr int64_t kAlignment = 64;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace

AdamW::AdamW(model::LanguageModel& model, const run::OptimizerRecipe& recipe,
             at::ScalarType compute, const distributed::World& world, bool shard)
    : recipe_(recipe),
      world_(world),
      is_sharded_(shard && world.size() > 1),
      copies_(compute != at::kFloat),
      groups_(2) {
  groups_[0].weight_decay = recipe.weight_decay;
  for (const auto& parameter : model.named_parameters()) {
    Group& group = groups_[parameter.value().dim() >= 2 ? 0 : 1];
    group.names.push_back(parameter.key());
    group.parameters.push_back(parameter.value());
  }
  std::erase_if(groups_, [](const Group& group) { return group.names.empty(); });
  step_ = at::zeros({}, groups_.at(0).parameters[0].options());
  world_.barrier();  // as in reduce_gradients: a rank may have failed to read its data
  for (Group& group : groups_) {
    if (is_sharded_) {
      this->shard(group, compute);
      continue;
    }
    for (const at::Tensor& parameter : group.parameters) {
      const at::Tensor weight = parameter.detach();
      world_.broadcast(weight);  // no rank may begin with other weights
      group.weights.push_back(copies_ ? weight.clone() : weight);
      group.exp_avgs.push_back(at::zeros_like(weight));
      group.exp_avg_sqs.push_back(at::zeros_like(weight));
    }
  }
  if (copies_ && !is_sharded_) model.to(compute);
}

void AdamW::shard(Group& group, at::ScalarType compute) const {
  const at::NoGradGuard no_grad;
  int64_t end = 0;
  for (const at::Tensor& parameter : group.parameters) {
    group.offsets.push_back(end);
    end += round_up(parameter.numel(), kAlignment);
  }
  const at::Tensor flat = at::zeros({round_up(end, kAlignment * world_.size())}, step_.options());
  at::_foreach_copy_(group.views(flat), group.parameters);
  world_.broadcast(flat);
  group.flat_parameters = flat.to(compute);
  const Tensors places = group.views(group.flat_parameters);
  for (size_t i = 0; i < places.size(); ++i) group.parameters[i].set_data(places[i]);
  const at::Tensor part = part_of(flat);
  group.weights = {copies_ ? part.clone() : part};
  group.exp_avgs = {at::zeros_like(part)};
  group.exp_avg_sqs = {at::zeros_like(part)};
  group.flat_gradients = at::zeros_like(flat);
}

AdamW::Tensors AdamW::Group::views(const at::Tensor& flat) const {
  Tensors views;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& parameter = parameters[i];
    views.push_back(flat.narrow(0, offsets[i], parameter.numel()).view(parameter.sizes()));
  }
  return views;
}

at::Tensor AdamW::part_of(const at::Tensor& flat) const {
  const int64_t elements = flat.numel() / world_.size();
  return flat.narrow(0, world_.rank() * elements, elements);
}

void AdamW::collect_gradients() {
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    Tensors found;
    for (at::Tensor& parameter : group.parameters) {
      found.push_back(parameter.grad());
      parameter.mutable_grad().reset();
    }
    if (is_sharded_) {
      const Tensors sums = group.views(group.flat_gradients);
      if (group.gradients.empty()) {
        at::_foreach_copy_(sums, found);
      } else {
        at::_foreach_add_(sums, found);
      }
      group.gradients = {group.flat_gradients};
    } else if (group.gradients.empty()) {
      for (at::Tensor& gradient : found) gradient = gradient.to(at::kFloat);
      group.gradients = std::move(found);
    } else {
      at::_foreach_add_(group.gradients, found);
    }
  }
}

void AdamW::reduce_gradients() {
  if (world_.size() == 1) return;
  world_.barrier();  // over Gloo, which misses a rank that failed at once; NCCL's kernels wait
  for (Group& group : groups_) {
    if (!is_sharded_) {
      add_up(group.gradients);
      continue;
    }
    const at::Tensor part = at::empty_like(group.exp_avgs[0]);
    world_.sum_scatter(group.flat_gradients, part);
    group.gradients = {part};
  }
}

/// Adds up tensors over the ranks, in groups so large that an exchange is worth its start.
void AdamW::add_up(const Tensors& gradients) const {
  constexpr int64_t kElements = 1 << 24;
  for (size_t begin = 0, end = 0; begin < gradients.size(); begin = end) {
    int64_t elements = 0;
    Tensors rows;
    std::vector<int64_t> sizes;
    do {
      rows.push_back(gradients[end].reshape({-1}));
      sizes.push_back(rows.back().numel());
      elements += sizes.back();
      ++end;
    } while (end < gradients.size() && elements + gradients[end].numel() <= kElements);
    const at::Tensor bucket = at::cat(rows);
    world_.sum(bucket);
    const Tensors sums = bucket.split_with_sizes(sizes);
    for (size_t i = 0; i < sums.size(); ++i) {
      gradients[begin + i].copy_(sums[i].view_as(gradients[begin + i]));
    }
  }
}

AdamW::Tensors AdamW::gradients() const {
  Tensors all;
  for (const Group& group : groups_) {
    all.insert(all.end(), group.gradients.begin(), group.gradients.end());
  }
  return all;
}

void AdamW::scale_gradients(double factor) { at::_foreach_mul_(gradients(), factor); }

double AdamW::clip_gradients() {
  const Tensors all = gradients();
  double norm = 0;
  if (is_sharded_) {
    // PyTorch's float32 norm of a tensor as long as these loses digits on the CPU. In pieces, as
    // float64 takes memory.
    constexpr int64_t kElements = 1 << 25;
    const at::Tensor squares = at::zeros({}, step_.options().dtype(at::kDouble));
    for (const at::Tensor& part : all) {
      for (const at::Tensor& piece : part.split(kElements)) {
        const at::Tensor values = piece.to(at::kDouble);
        squares.add_(at::dot(values, values));
      }
    }
    norm = std::sqrt(world_.sum(squares.item<double>()));
  } else {
    // All must decide alike, and their sums may round differently.
    norm = world_.max(at::stack(at::_foreach_norm(all)).norm().item<double>());
  }
  if (norm > recipe_.max_grad_norm) at::_foreach_mul_(all, recipe_.max_grad_norm / norm);
  return norm;
}

void AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  step_.add_(1);
  for (Group& group : groups_) {
    const Tensors steps(group.weights.size(), step_);
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
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    if (is_sharded_) {
      const at::Tensor part = part_of(group.flat_parameters);
      if (copies_) part.copy_(group.weights[0]);
      world_.gather_parts(part, group.flat_parameters);
    } else if (copies_) {
      at::_foreach_copy_(group.parameters, group.weights);
    }
  }
}

void AdamW::add_named(std::map<std::string, at::Tensor>& all, const std::string& prefix,
                      Tensors Group::*kind) const {
  world_.barrier();  // as in reduce_gradients
  for (const Group& group : groups_) {
    Tensors whole = group.*kind;
    if (is_sharded_) {
      const at::Tensor flat = at::empty_like(group.flat_gradients);
      world_.gather_parts(whole[0], flat);
      if (!world_.is_first()) continue;
      whole = group.views(flat.cpu());
    }
    for (size_t i = 0; i < whole.size(); ++i) all[prefix + group.names[i]] = whole[i];
  }
}

std::map<std::string, at::Tensor> AdamW::weights() const {
  std::map<std::string, at::Tensor> all;
  add_named(all, "", &Group::weights);
  return all;
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> all;
  if (!is_sharded_ || world_.is_first()) all["step"] = step_;
  add_named(all, "exp_avg.", &Group::exp_avgs);
  add_named(all, "exp_avg_sq.", &Group::exp_avg_sqs);
  return all;
}

void AdamW::restore(const std::map<std::string, at::Tensor>& weights,
                    const std::map<std::string, at::Tensor>& state, const std::string& source) {
  const at::NoGradGuard no_grad;
  std::vector<std::pair<at::Tensor, at::Tensor>> parts;  // of this rank, and what they are cut from
  const auto add = [&](std::map<std::string, at::Tensor>& all, const std::string& prefix,
                       Tensors Group::*kind) {
    for (Group& group : groups_) {
      Tensors whole = group.*kind;
      if (is_sharded_) {
        const at::Tensor flat = at::zeros_like(group.flat_gradients, at::kCPU);
        parts.emplace_back(whole[0], part_of(flat));
        whole = group.views(flat);
      }
      for (size_t i = 0; i < whole.size(); ++i) all[prefix + group.names[i]] = whole[i];
    }
  };
  std::map<std::string, at::Tensor> into_weights, into_state{{"step", step_}};
  add(into_weights, "", &Group::weights);
  add(into_state, "exp_avg.", &Group::exp_avgs);
  add(into_state, "exp_avg_sq.", &Group::exp_avg_sqs);
  run::restore(weights, into_weights, source);
  run::restore(state, into_state, source);
  for (const auto& [part, from] : parts) part.copy_(from);
  publish_weights();
}

}  // namespace lighthouse::train
