#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "lighthouse/model/language_model.h"
#include "lighthouse/run/recipe.h"

namespace lighthouse::train {

/// AdamW with decoupled weight decay on matrices alone, and clipping by the global norm.
///
/// Weights, gradients and moments are float32 here, whatever type the model computes in: the model
/// then has rounded copies of the weights, and its gradients are added up in float32.
class AdamW {
 public:
  /// @param model in float32; it is of type `compute` then
  AdamW(model::LanguageModel& model, const run::OptimizerRecipe& recipe,
        at::ScalarType compute = at::kFloat);

  /// Adds the gradients that a backward pass left in the model to those of the step. This is the
  /// place where gradients of several processes are to be reduced.
  void collect_gradients();

  /// The 2-norm of all collected gradients together, which are scaled down to max_grad_norm where
  /// it is above that. NaN or infinite where a gradient is.
  double clip_gradients();

  /// Updates the weights from the collected gradients, and drops those.
  void step(double lr);
  /// Drops the collected gradients instead.
  void drop_gradients();

  /// The weights themselves, not copies, by their parameters' names.
  std::map<std::string, at::Tensor> weights() const;
  /// Gives the model the weights, after they were changed from outside.
  void publish_weights();

  /// The state itself, not copies: the moments "exp_avg.NAME" and "exp_avg_sq.NAME" of each
  /// parameter, and "step".
  std::map<std::string, at::Tensor> state() const;

 private:
  /// Parameters that are updated alike.
  struct Group {
    double weight_decay = 0;
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters;  ///< the model's
    std::vector<at::Tensor> weights;     ///< the same tensors where the model is float32
    std::vector<at::Tensor> gradients;   ///< empty between steps
    std::vector<at::Tensor> exp_avgs, exp_avg_sqs;
  };

  run::OptimizerRecipe recipe_;
  bool copies_;  ///< the model has copies of the weights
  std::vector<Group> groups_;
  at::Tensor step_;
};

}  // namespace lighthouse::train
