#pragma once

#include <torch/library.h>

#include <string>

/// How operators are defined: each at the end of its stage's file, in a TORCH_LIBRARY_FRAGMENT.
namespace lighthouse::ops {

/// Defines an operator. One function computes it on every device, and on the meta device, where
/// compilers trace it: there it allocates what it gives, and no more.
/// @param autograd records its gradient; if not given, it has none
template <class Kernel, class Autograd>
void define(torch::Library& library, const std::string& schema, Kernel kernel, Autograd autograd) {
  const std::string name = schema.substr(0, schema.find('('));
  library.def(schema.c_str());
  for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta}) {
    library.impl(name.c_str(), torch::dispatch(key, kernel));
  }
  library.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, std::move(autograd)));
}
template <class Kernel>
void define(torch::Library& library, const std::string& schema, Kernel kernel) {
  define(library, schema, kernel, torch::CppFunction::makeFallthrough());
}

}  // namespace lighthouse::ops
