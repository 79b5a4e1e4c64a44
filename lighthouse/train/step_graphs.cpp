#include "lighthouse/train/step_graphs.h"

#ifdef LIGHTHOUSE_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace lighthouse::train {

#ifdef LIGHTHOUSE_CUDA

namespace {

/// One for all captures on a device: libraries keep workspaces for every stream that they have
/// seen.
c10::cuda::CUDAStream capture_stream(c10::DeviceIndex device) {
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  const auto found = streams.find(device);
  if (found != streams.end()) return found->second;
  return streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first->second;
}

/// The values of a batch's tensor into the one that a graph reads.
void copy_values(const at::Tensor& from, const at::Tensor& into) {
  TORCH_CHECK(from.defined() == into.defined(),
              "a batch has a tensor that others of its kind of step lack, or lacks one");
  if (into.defined()) into.copy_(from);
}

/// What `run` launches; where it throws, nothing is being captured any more.
void capture(at::cuda::CUDAGraph& graph, c10::MempoolId_t pool, const std::function<void()>& run) {
  graph.capture_begin(pool);
  try {
    run();
  } catch (c10::Error& error) {
    error.add_context("while a step was captured for run.cuda_graphs");
    try {
      graph.capture_end();
    } catch (const c10::Error&) {
      // What began it says more.
    }
    throw;
  }
  graph.capture_end();
}

}  // namespace

struct StepGraphs::Graph {
  /// @param pool memory of graphs that are replayed before and after; an empty one: of its own
  Graph(const data::Batch& micro_batch, const std::vector<at::Tensor>& parameters, const Pass& pass,
        c10::MempoolId_t pool)
      : batch(micro_batch.map([](const at::Tensor& tensor) { return tensor.clone(); })) {
    const c10::Device device = micro_batch.tokens.device();
    const c10::cuda::CUDAGuard guard(device);
    // A graph has memory of its own: what earlier passes left cached would lie idle beside it.
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    const c10::cuda::CUDAStreamGuard stream(capture_stream(device.index()));
    capture(graph, pool, [&] { result = pass(batch); });
    for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
  }

  /// What it gives is to be taken before any graph of its pool is replayed again.
  at::Tensor replay(const data::Batch& micro_batch, const std::vector<at::Tensor>& parameters) {
    copy_values(micro_batch.tokens, batch.tokens);
    copy_values(micro_batch.targets, batch.targets);
    copy_values(micro_batch.positions, batch.positions);
    copy_values(micro_batch.document_starts, batch.document_starts);
    graph.replay();
    for (size_t i = 0; i < parameters.size(); ++i) {
      // The optimizer takes float32 ones as they are, and the next replay would write over them.
      const bool taken_as_is = gradients[i].scalar_type() == at::kFloat;
      parameters[i].mutable_grad() = taken_as_is ? gradients[i].clone() : gradients[i];
    }
    return result.clone();
  }

  at::cuda::CUDAGraph graph;
  data::Batch batch;
  std::vector<at::Tensor> gradients;
  at::Tensor result;
};

at::Tensor StepGraphs::run(const run::StepPlan& kind, const data::Batch& micro_batch,
                           const Pass& pass) {
  const auto [found, is_first] = graphs_.try_emplace(kind);
  if (is_first) return pass(micro_batch);
  if (found->second == nullptr) {
    c10::MempoolId_t pool{};
    for (const auto& [other, graph] : graphs_) {
      if (graph != nullptr) pool = graph->graph.pool();
    }
    found->second = std::make_unique<Graph>(micro_batch, parameters_, pass, pool);
  }
  return found->second->replay(micro_batch, parameters_);
}

#else

struct StepGraphs::Graph {};

at::Tensor StepGraphs::run(const run::StepPlan& /*kind*/, const data::Batch& micro_batch,
                           const Pass& pass) {
  return pass(micro_batch);
}

#endif

StepGraphs::StepGraphs(const model::LanguageModel& model) : parameters_(model.parameters()) {}
StepGraphs::~StepGraphs() = default;

}  // namespace lighthouse::train
