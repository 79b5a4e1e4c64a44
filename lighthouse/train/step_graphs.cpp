#include "lighthouse/train/step_graphs.h"

#ifdef LIGHTHOUSE_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace lighthouse::train {

#ifdef LIGHTHOUSE_CUDA

struct StepGraphs::Graph {
  Graph(const data::Batch& micro_batch, const std::vector<at::Tensor>& parameters, const Pass& pass)
      : batch{micro_batch.tokens.clone(), micro_batch.targets.clone()} {
    const c10::cuda::CUDAGuard device(micro_batch.tokens.device());
    // A graph has memory of its own: what earlier passes left cached would lie idle beside it.
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromPool());
    graph.capture_begin();
    result = pass(batch);
    graph.capture_end();
    for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
  }

  at::Tensor replay(const data::Batch& micro_batch, const std::vector<at::Tensor>& parameters) {
    batch.tokens.copy_(micro_batch.tokens);
    batch.targets.copy_(micro_batch.targets);
    graph.replay();
    for (size_t i = 0; i < parameters.size(); ++i) {
      // The next replay writes over them: float32 ones would be collected as they are.
      const bool kept = gradients[i].scalar_type() == at::kFloat;
      parameters[i].mutable_grad() = kept ? gradients[i].clone() : gradients[i];
    }
    return result.clone();
  }

  at::cuda::CUDAGraph graph;
  data::Batch batch;
  std::vector<at::Tensor> gradients;
  at::Tensor result;
};

at::Tensor StepGraphs::run(const StepPlan& kind, const data::Batch& micro_batch, const Pass& pass) {
  const auto [found, is_first] =
      graphs_.try_emplace({kind.lighthouse, kind.sequences, kind.context, kind.micro_batch});
  if (is_first) return pass(micro_batch);
  std::unique_ptr<Graph>& graph = found->second;
  if (!graph) graph = std::make_unique<Graph>(micro_batch, parameters_, pass);
  return graph->replay(micro_batch, parameters_);
}

#else

struct StepGraphs::Graph {};

at::Tensor StepGraphs::run(const StepPlan& /*kind*/, const data::Batch& micro_batch,
                           const Pass& pass) {
  return pass(micro_batch);
}

#endif

StepGraphs::StepGraphs(const model::Llama& model) : parameters_(model->parameters()) {}
StepGraphs::~StepGraphs() = default;

}  // namespace lighthouse::train
