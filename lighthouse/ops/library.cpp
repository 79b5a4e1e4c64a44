#include "lighthouse/core/geometry.h"
#include "lighthouse/ops/arguments.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using c10::OperatorHandle;
using torch::jit::Stack;

/// The kernels are compiled for it: without this check an older processor would stop at an illegal
/// instruction.
bool processor_fits() {
#ifdef LIGHTHOUSE_NEEDS_AVX2
  return __builtin_cpu_supports("avx2") != 0;
#else
  return true;
#endif
}

void attention_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const auto scores = given.pair("scores_q", "scores_k"), maps = given.pair("rows", "slots");
  TORCH_CHECK_VALUE(!scores || !maps,
                    "rows and slots are given, and scores too; one of both must be left out");
  Given instead;
  if (scores) instead = TokenScores{scores->first, scores->second};
  if (maps) instead = Selection{maps->first, maps->second};
  torch::jit::push(
      *stack, attention(given.tensor("q"), given.tensor("k"), given.tensor("v"), given.config(),
                        instead, given.optional_tensor("document_starts")));
}

void local_attention_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  torch::jit::push(*stack,
                   local_attention(given.tensor("q"), given.tensor("k"), given.tensor("v"),
                                   given.config(), given.optional_tensor("document_starts")));
}

void dense_attention_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  torch::jit::push(*stack, dense_attention(given.tensor("q"), given.tensor("k"), given.tensor("v"),
                                           given["scale"].toOptional<double>(),
                                           given.optional_tensor("document_starts")));
}

void select_rows(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  std::optional<TokenScores> scores;
  if (const auto both = given.pair("scores_q", "scores_k")) scores = {both->first, both->second};
  const Selection selection =
      select(given.tensor("q"), given.tensor("k"), given.tensor("v"), given.config(), scores,
             given.optional_tensor("document_starts"));
  torch::jit::push(*stack, selection.rows, selection.slots);
}

void gathered_rows_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const Config config = given.config();
  torch::jit::push(*stack, as_value_error([&] {
    return gathered_rows(given["tokens"].toInt(), config, given["documents"].toInt());
  }));
}

void dense_because_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const Config config = given.config();
  torch::jit::push(*stack, as_value_error([&] {
    return dense_because(given["tokens"].toInt(), config, given["documents"].toInt());
  }));
}

void local_shift_of_layer(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  torch::jit::push(*stack, given.config().of_layer(given["layer"].toInt()).local_shift);
}

void check_config(const OperatorHandle& op, Stack* stack) { Arguments(op, stack).config(); }

}  // namespace
}  // namespace lighthouse::ops

// lighthouse/ops/attention.h as operators, with the settings of lighthouse/core/settings.h by their
// names. Those that it is made of are defined in the files of the stages.
TORCH_LIBRARY(lighthouse, library) {
  using namespace lighthouse::ops;
  TORCH_CHECK(processor_fits(),
              "this build of lighthouse needs a processor with AVX2, and this one has none; build "
              "it with -DLIGHTHOUSE_CPU_ARCH=x86-64");

  const std::string settings = settings_schema();
  const std::string scores = ", Tensor? scores_q=None, Tensor? scores_k=None";
  const std::string documents = ", Tensor? document_starts=None";
  define_whole<attention_of>(library, "attention(Tensor q, Tensor k, Tensor v, " + settings +
                                          scores + ", Tensor? rows=None, Tensor? slots=None" +
                                          documents + ") -> Tensor out");
  define_whole<local_attention_of>(library, "local_attention(Tensor q, Tensor k, Tensor v, " +
                                                settings + documents + ") -> Tensor out");
  define_whole<dense_attention_of>(
      library, "dense_attention(Tensor q, Tensor k, Tensor v, float? scale=None" + documents +
                   ") -> Tensor out");
  define_whole<select_rows>(library, "select_rows(Tensor q, Tensor k, Tensor v, " + settings +
                                         scores + documents + ") -> (Tensor rows, Tensor slots)");
  define_whole<gathered_rows_of>(
      library, "gathered_rows(int tokens, " + settings + ", int documents=1) -> int");
  define_whole<dense_because_of>(
      library, "dense_because(int tokens, " + settings + ", int documents=1) -> str");
  define_whole<local_shift_of_layer>(library,
                                     "local_shift_of_layer(int layer, " + settings + ") -> int");
  define_whole<check_config>(library, "check_config(" + settings + ") -> ()");
}
