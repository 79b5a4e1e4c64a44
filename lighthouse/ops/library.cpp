#include <ATen/core/stack.h>
#include <torch/library.h>

#include <type_traits>

#include "lighthouse/core/geometry.h"
#include "lighthouse/core/settings.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using at::Tensor;
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

std::string parameter(const Setting& setting, int64_t value) {
  return message("int ", setting.name, "=", value);
}
std::string parameter(const Setting& setting, const std::optional<double>& /*none*/) {
  return message("float? ", setting.name, "=None");
}
template <HasWords Enum>
std::string parameter(const Setting& setting, Enum value) {
  return message("str ", setting.name, "=\"", to_string(value), "\"");
}

/// The settings as an operator's schema has them: each by its name, with its default.
std::string settings_schema() {
  const Config defaults;
  std::string schema = "*";
  for_each_setting(defaults, [&](const Setting& setting, const auto& value) {
    schema += ", " + parameter(setting, value);
  });
  return schema;
}

/// The arguments of a call, by their names in the schema. They are taken off the stack.
class Arguments {
 public:
  Arguments(const OperatorHandle& op, Stack* stack)
      : schema_(op.schema()), values_(torch::jit::pop(*stack, schema_.arguments().size())) {}

  const c10::IValue& operator[](const char* name) const {
    const auto index = schema_.argumentIndexWithName(name);
    TORCH_INTERNAL_ASSERT(index.has_value(), schema_.name(), " has no argument ", name);
    return values_[*index];
  }

  /// The settings among them.
  Config config() const {
    return as_value_error([&] {
      Config config;
      for_each_setting(config, [&](const Setting& setting, auto& value) {
        set(value, (*this)[setting.name], setting.name);
      });
      config.validate();
      return config;
    });
  }

  /// Two tensors, of which both are given or neither.
  std::optional<std::pair<Tensor, Tensor>> pair(const char* first, const char* second) const {
    const c10::IValue &a = (*this)[first], &b = (*this)[second];
    TORCH_CHECK_VALUE(a.isNone() == b.isNone(), first, " and ", second,
                      " belong together: one of them is given, the other is not");
    if (a.isNone()) return {};
    return std::pair(a.toTensor(), b.toTensor());
  }

 private:
  static void set(int64_t& value, const c10::IValue& given, const char* /*name*/) {
    value = given.toInt();
  }
  static void set(std::optional<double>& value, const c10::IValue& given, const char* /*name*/) {
    value = given.toOptional<double>();
  }
  template <HasWords Enum>
  static void set(Enum& value, const c10::IValue& given, const char* name) {
    value = parse_word<Enum>(given.toStringRef(), name);
  }

  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> values_;
};

void attention_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const auto scores = given.pair("scores_q", "scores_k"), maps = given.pair("rows", "slots");
  TORCH_CHECK_VALUE(!scores || !maps,
                    "rows and slots are given, and scores too; one of both must be left out");
  Given instead;
  if (scores) instead = TokenScores{scores->first, scores->second};
  if (maps) instead = Selection{maps->first, maps->second};
  torch::jit::push(*stack, attention(given["q"].toTensor(), given["k"].toTensor(),
                                     given["v"].toTensor(), given.config(), instead));
}

void local_attention_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  torch::jit::push(*stack, local_attention(given["q"].toTensor(), given["k"].toTensor(),
                                           given["v"].toTensor(), given.config()));
}

void select_rows(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  std::optional<TokenScores> scores;
  if (const auto both = given.pair("scores_q", "scores_k")) scores = {both->first, both->second};
  const Selection selection = select(given["q"].toTensor(), given["k"].toTensor(),
                                     given["v"].toTensor(), given.config(), scores);
  torch::jit::push(*stack, selection.rows, selection.slots);
}

void gathered_rows_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const Config config = given.config();
  torch::jit::push(*stack,
                   as_value_error([&] { return gathered_rows(given["tokens"].toInt(), config); }));
}

void dense_because_of(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  const Config config = given.config();
  torch::jit::push(*stack,
                   as_value_error([&] { return dense_because(given["tokens"].toInt(), config); }));
}

void local_shift_of_layer(const OperatorHandle& op, Stack* stack) {
  const Arguments given(op, stack);
  torch::jit::push(*stack, given.config().of_layer(given["layer"].toInt()).local_shift);
}

void check_config(const OperatorHandle& op, Stack* stack) { Arguments(op, stack).config(); }

/// Defines an operator that is made of others, and so are its gradient and what compilers trace.
template <c10::BoxedKernel::BoxedKernelFunction* function>
void define_whole(torch::Library& library, const std::string& schema) {
  library.def(schema.c_str(), torch::CppFunction::makeFromBoxedFunction<function>());
}

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
  define_whole<attention_of>(library, "attention(Tensor q, Tensor k, Tensor v, " + settings +
                                          scores +
                                          ", Tensor? rows=None, Tensor? slots=None) -> Tensor out");
  define_whole<local_attention_of>(
      library, "local_attention(Tensor q, Tensor k, Tensor v, " + settings + ") -> Tensor out");
  define_whole<select_rows>(library, "select_rows(Tensor q, Tensor k, Tensor v, " + settings +
                                         scores + ") -> (Tensor rows, Tensor slots)");
  define_whole<gathered_rows_of>(library, "gathered_rows(int tokens, " + settings + ") -> int");
  define_whole<dense_because_of>(library, "dense_because(int tokens, " + settings + ") -> str");
  define_whole<local_shift_of_layer>(library,
                                     "local_shift_of_layer(int layer, " + settings + ") -> int");
  define_whole<check_config>(library, "check_config(" + settings + ") -> ()");
}
