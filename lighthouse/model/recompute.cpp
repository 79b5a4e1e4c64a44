#include "lighthouse/model/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

namespace lighthouse::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Layer = std::function<Tensor(const Tensor&)>;

struct KeptLayer : torch::CustomClassHolder {
  explicit KeptLayer(Layer kept) : layer(std::move(kept)) {}
  Layer layer;
};

class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Layer& layer) {
    context->save_for_backward({x});
    context->saved_data["layer"] = c10::IValue::make_capsule(c10::make_intrusive<KeptLayer>(layer));
    return layer(x);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "recomputed layers are differentiable once");
    const auto kept = context->saved_data["layer"].toCapsule();
    const Tensor x = context->get_saved_variables()[0].detach().requires_grad_();
    const at::AutoGradMode with_gradients(true);
    const Tensor out = static_cast<const KeptLayer&>(*kept).layer(x);
    torch::autograd::backward({out}, {grads[0]});
    return {x.grad(), Tensor()};
  }
};

}  // namespace

Tensor recomputed(const Layer& layer, const Tensor& x) {
  return x.requires_grad() && at::GradMode::is_enabled() ? Recomputed::apply(x, layer) : layer(x);
}

}  // namespace lighthouse::model
