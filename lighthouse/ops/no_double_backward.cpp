#include "lighthouse/ops/no_double_backward.h"

namespace lighthouse::ops {
namespace {

class NoDoubleBackward : public torch::autograd::Function<NoDoubleBackward> {
 public:
  // `inputs` are named only so that autograd connects the results to them.
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* context, at::TensorList /*inputs*/, const std::string& name,
      const std::function<torch::autograd::variable_list()>& compute) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->saved_data["name"] = name;
    return compute();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& /*grads*/) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, context->saved_data["name"].toStringRef(),
                                " has no double backward: its gradient cannot be differentiated");
  }
};

}  // namespace

torch::autograd::variable_list no_double_backward(
    const std::string& name, at::TensorList inputs,
    const std::function<torch::autograd::variable_list()>& compute) {
  if (!at::GradMode::is_enabled()) {  // nothing is recorded that could be differentiated
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return compute();
  }
  return NoDoubleBackward::apply(inputs, name, compute);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> no_double_backward(
    const std::string& name, at::TensorList inputs,
    const std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>()>& compute) {
  const auto grads = no_double_backward(name, inputs, [&] {
    const auto [first, second, third] = compute();
    return torch::autograd::variable_list{first, second, third};
  });
  return {grads[0], grads[1], grads[2]};
}

}  // namespace lighthouse::ops
