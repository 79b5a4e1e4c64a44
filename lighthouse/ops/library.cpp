#include <torch/library.h>

#include <string>

#include "lighthouse/ops/tensor.h"

namespace {

/// The kernels are compiled for it: without this check an older processor would stop at an illegal
/// instruction.
bool processor_fits() {
#ifdef LIGHTHOUSE_NEEDS_AVX2
  return __builtin_cpu_supports("avx2") != 0;
#else
  return true;
#endif
}

}  // namespace

// The stages but attend, which is PyTorch's own attention, and their adjoints. Shapes and rules:
// lighthouse/kernels/<stage>.h. `geometry` is [tokens, levels, pooling_factor, budget,
// tile_budget]. Only gather (in q, k and v) and scatter (in gathered_out) are differentiable.
TORCH_LIBRARY(lighthouse, m) {
  TORCH_CHECK(processor_fits(),
              "this build of lighthouse needs a processor with AVX2, and this one has none; build "
              "it with -DLIGHTHOUSE_CPU_ARCH=x86-64");
  m.def(
      "score(Tensor q, Tensor k, Tensor v, int[] geometry) -> "
      "(Tensor scores_q, Tensor scores_k, Tensor roots)");
  m.def(
      "pool_scores(Tensor tokens_q, Tensor tokens_k, int[] geometry) -> "
      "(Tensor scores_q, Tensor scores_k)");
  m.def(
      "select(Tensor scores_q, Tensor scores_k, str selection, int[] geometry) -> "
      "(Tensor rows, Tensor slots)");
  m.def(
      "gather(Tensor q, Tensor k, Tensor v, Tensor roots, Tensor rows, Tensor slots, "
      "int[] geometry) -> (Tensor gathered_q, Tensor gathered_k, Tensor gathered_v)");
  m.def(
      "gather_backward(Tensor grad_gathered_q, Tensor grad_gathered_k, Tensor grad_gathered_v, "
      "Tensor slots, bool heads_major, int[] geometry) -> "
      "(Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  m.def("scatter(Tensor gathered_out, Tensor rows, Tensor slots, int[] geometry) -> Tensor out");
  m.def(
      "scatter_backward(Tensor grad_out, Tensor rows, int[] geometry) -> "
      "Tensor grad_gathered_out");

  // All of it, made of the stages: lighthouse/ops/attention.h, for those who call from Python.
  const std::string config =
      "int levels, int pooling_factor, int budget, int tile_budget, str scorer, int dilation, "
      "str selection, float? scale";
  const auto define = [&](const std::string& schema) { m.def(schema.c_str()); };
  define("attention(Tensor q, Tensor k, Tensor v, " + config +
         ", Tensor? rows=None, Tensor? slots=None) -> Tensor out");
  define("select_rows(Tensor q, Tensor k, Tensor v, " + config +
         ", Tensor? scores_q=None, Tensor? scores_k=None) -> (Tensor rows, Tensor slots)");
  define("gathered_rows(int tokens, " + config + ") -> int");
  define("dense_because(int tokens, " + config + ") -> str");
  define("check_config(" + config + ") -> ()");
}
