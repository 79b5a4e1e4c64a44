#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "lighthouse/data/batch.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::train {

/// CUDA graphs of the forward and backward pass, one for each kind of step: the GPU gets all of a
/// pass at once, where it would wait for a CPU that starts small kernels one by one.
///
/// A graph reads and writes memory that stays in place, and the graphs together keep that of the
/// largest pass for themselves. What a graph was captured from must not change: all that the pass
/// knows but its batch, the model's attention at a kind of step, what it recomputes, where its
/// parameters lie, and the positions that it has reserved.
class StepGraphs {
 public:
  /// Gives a scalar, and leaves gradients in the model's parameters, which have none before.
  using Pass = std::function<at::Tensor(const data::Batch&)>;

  explicit StepGraphs(const model::LanguageModel& model);
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  /// Does what `pass` does. The first pass of a kind sets libraries up and runs as it is; the
  /// second is captured, and it and all that follow are replayed.
  /// @param micro_batch on the model's device, which is a GPU; of one shape throughout a kind, and
  ///        with positions in every one or in none, and so with documents
  at::Tensor run(const run::StepPlan& kind, const data::Batch& micro_batch, const Pass& pass);

 private:
  struct Graph;

  std::vector<at::Tensor> parameters_;
  std::map<run::StepPlan, std::unique_ptr<Graph>> graphs_;
};

}  // namespace lighthouse::train
