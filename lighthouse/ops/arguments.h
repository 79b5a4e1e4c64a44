#pragma once

#include <ATen/core/stack.h>
#include <torch/library.h>

#include <optional>
#include <utility>

#include "lighthouse/core/settings.h"
#include "lighthouse/ops/tensor.h"

/// Operators that take the settings of lighthouse/core/settings.h by their names.
namespace lighthouse::ops {

inline std::string parameter(const Setting& setting, int64_t value) {
  return message("int ", setting.name, "=", value);
}
inline std::string parameter(const Setting& setting, const std::optional<double>& /*none*/) {
  return message("float? ", setting.name, "=None");
}
template <HasWords Enum>
std::string parameter(const Setting& setting, Enum value) {
  return message("str ", setting.name, "=\"", to_string(value), "\"");
}

/// The settings as an operator's schema has them: each by its name, with its default.
inline std::string settings_schema() {
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
  Arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack)
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

  at::Tensor tensor(const char* name) const { return (*this)[name].toTensor(); }

  std::optional<at::Tensor> optional_tensor(const char* name) const {
    return (*this)[name].toOptional<at::Tensor>();
  }

  /// Two tensors, of which both are given or neither.
  std::optional<std::pair<at::Tensor, at::Tensor>> pair(const char* first,
                                                        const char* second) const {
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

/// Defines an operator that is made of others, and so are its gradient and what compilers trace.
template <c10::BoxedKernel::BoxedKernelFunction* function>
void define_whole(torch::Library& library, const std::string& schema) {
  library.def(schema.c_str(), torch::CppFunction::makeFromBoxedFunction<function>());
}

}  // namespace lighthouse::ops
