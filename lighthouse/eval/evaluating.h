#pragma once

#include <ATen/core/grad_mode.h>

#include "lighthouse/model/language_model.h"

namespace lighthouse::eval {

/// While it lives: no gradients, and the model in eval mode with that attention.
class Evaluating {
 public:
  /// @param as_trained with the attention of training (lighthouse_in_eval), else dense
  Evaluating(model::LanguageModel& model, bool as_trained)
      : model_(model),
        was_training_(model.is_training()),
        was_lighthouse_(model.lighthouse_in_eval()) {
    model_.eval();
    model_.set_lighthouse_in_eval(as_trained);
  }
  ~Evaluating() {
    model_.set_lighthouse_in_eval(was_lighthouse_);
    model_.train(was_training_);
  }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

 private:
  at::NoGradGuard no_grad_;
  model::LanguageModel& model_;
  bool was_training_;
  bool was_lighthouse_;
};

}  // namespace lighthouse::eval
