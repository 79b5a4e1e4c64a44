#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <vector>

#include "lighthouse/distributed/world.h"
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

/// Whether this rank is the one that measures an item of a list; rank r has r, r + R, ...
inline bool measures(const distributed::World& ranks, int64_t item) {
  return item % ranks.size() == ranks.rank();
}

/// Figures of a list of items, to which each rank has added those of its own items and zeros for
/// the others: then all ranks have all of them.
inline void share(std::vector<double>& figures, const distributed::World& ranks) {
  if (figures.empty()) return;
  ranks.sum(at::from_blob(figures.data(), {static_cast<int64_t>(figures.size())}, at::kDouble));
}

}  // namespace lighthouse::eval
