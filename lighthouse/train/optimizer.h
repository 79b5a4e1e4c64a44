#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "lighthouse/distributed/world.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::train {

/// AdamW with decoupled weight decay on matrices alone, and clipping by the global norm.
///
/// Weights, gradients and moments are float32 here, whatever type the model computes in: the model
/// then has rounded copies of the weights, and its gradients are added up in float32.
///
/// Several ranks share the work (ZeRO, stage 1): each keeps the moments, and float32 weights beside
/// a model of another type, of its part of the weights alone, and updates that part. Or, where that
/// is not wanted, each does as one rank with the sum of all ranks' gradients. All ranks must make
/// the same calls.
class AdamW {
 public:
  /// @param model in float32; it is of type `compute` then, and has rank 0's weights
  /// @param shard whether several ranks have a part of the work each
  AdamW(model::LanguageModel& model, const run::OptimizerRecipe& recipe,
        at::ScalarType compute = at::kFloat, const distributed::World& world = {},
        bool shard = true);

  /// Adds the gradients that a backward pass left in the model to those of the step.
  void collect_gradients();

  /// Adds up what the ranks have collected. It comes once, after the last `collect_gradients`, and
  /// not during the backward pass.
  void reduce_gradients();

  /// Multiplies what `reduce_gradients` has left.
  void scale_gradients(double factor);

  /// The 2-norm of all collected gradients together, which are scaled down to max_grad_norm where
  /// it is above that. NaN or infinite where a gradient is. The same on each rank.
  double clip_gradients();

  /// Updates the weights from the collected gradients, and drops those.
  void step(double lr);
  /// Drops the collected gradients instead.
  void drop_gradients();

  /// The weights by their parameters' names: the tensors themselves. Where ranks have parts of
  /// them, whole copies in the memory of the CPU on rank 0, and nothing on the others.
  std::map<std::string, at::Tensor> weights() const;

  /// The state, given as `weights` gives the weights: the moments "exp_avg.NAME" and
  /// "exp_avg_sq.NAME" of each parameter, and "step".
  std::map<std::string, at::Tensor> state() const;

  /// Takes over weights and state as those two give them, and gives the model the weights. Every
  /// rank needs all of them, whatever number of ranks they are from. Throws as run::restore does.
  void restore(const std::map<std::string, at::Tensor>& weights,
               const std::map<std::string, at::Tensor>& state, const std::string& source);

  const distributed::World& world() const { return world_; }

 private:
  using Tensors = std::vector<at::Tensor>;

  /// Parameters that are updated alike. Weights, gradients and moments have a tensor for each
  /// parameter; where ranks have parts they have one, which is this rank's part of them all.
  struct Group {
    double weight_decay = 0;
    std::vector<std::string> names;
    Tensors parameters;  ///< the model's
    Tensors weights;     ///< of float32; parameters of that type are these very values
    Tensors gradients;   ///< empty unless the step has collected some
    Tensors exp_avgs, exp_avg_sqs;

    // Where ranks have parts: all parameters one after the other, in equal parts for the ranks.
    std::vector<int64_t> offsets;  ///< where each parameter begins
    at::Tensor flat_parameters;    ///< the memory of `parameters`
    at::Tensor flat_gradients;     ///< float32

    /// What lies in such a tensor, by parameter.
    Tensors views(const at::Tensor& flat) const;
  };

  /// Gives a group's parameters and its weights one tensor each, and the rank its part.
  void shard(Group& group, at::ScalarType compute) const;
  void add_up(const Tensors& gradients) const;
  Tensors gradients() const;  ///< of all groups
  at::Tensor part_of(const at::Tensor& flat) const;
  void publish_weights();
  /// Adds one kind of the groups' tensors, by prefixed names.
  void add_named(std::map<std::string, at::Tensor>& all, const std::string& prefix,
                 Tensors Group::*kind) const;

  run::OptimizerRecipe recipe_;
  distributed::World world_;
  bool is_sharded_;
  bool copies_;  ///< the model has copies of the weights
  std::vector<Group> groups_;
  at::Tensor step_;
};

}  // namespace lighthouse::train
