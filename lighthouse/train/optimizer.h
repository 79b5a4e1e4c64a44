#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "lighthouse/model/llama.h"
#include "lighthouse/train/recipe.h"

namespace lighthouse::train {

/// AdamW with decoupled weight decay on matrices alone, and clipping by the global norm.
class AdamW {
 public:
  AdamW(model::Llama& model, const OptimizerRecipe& recipe);

  /// The 2-norm of all gradients together, which are scaled down to max_grad_norm where it is above
  /// that. NaN or infinite where a gradient is.
  double clip_gradients();

  /// Updates the parameters from their gradients, and drops those.
  void step(double lr);

  /// The state itself, not copies: the moments "exp_avg.NAME" and "exp_avg_sq.NAME" of each
  /// parameter, and "step".
  std::map<std::string, at::Tensor> state() const;

 private:
  /// Parameters that are updated alike.
  struct Group {
    double weight_decay;
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters, exp_avgs, exp_avg_sqs;
  };

  OptimizerRecipe recipe_;
  std::vector<Group> groups_;
  at::Tensor step_;
};

}  // namespace lighthouse::train
