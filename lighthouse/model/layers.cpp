#include "lighthouse/model/layers.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lighthouse::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Rotate : public torch::autograd::Function<Rotate> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos,
                        const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    const auto in = x.chunk(2, -1);
    Tensor rotated = at::empty_like(x, at::MemoryFormat::Contiguous);
    auto out = rotated.chunk(2, -1);
    at::mul_out(out[0], in[0], cos).addcmul_(in[1], sin, -1);
    at::mul_out(out[1], in[1], cos).addcmul_(in[0], sin);
    return rotated;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    return {Rotate::apply(grad_outputs[0], saved[0], -saved[1]), Tensor(), Tensor()};
  }
};

class Swiglu : public torch::autograd::Function<Swiglu> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return at::silu(gate).mul_(up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "swiglu: double backward is not implemented");
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], &grad = grad_outputs[0];
    return {at::silu_backward(grad * up, gate), at::silu(gate).mul_(grad)};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return at::rms_norm(x, {x.size(-1)}, weight.to(x.scalar_type()), eps);
}

Rotation::Rotation(int64_t head_dim, double theta, const Tensor& x) {
  const auto options = x.options().dtype(at::kFloat).requires_grad(false);
  const Tensor pairs = at::arange(0, head_dim, 2, options) / static_cast<double>(head_dim);
  const Tensor angles =
      at::outer(at::arange(x.size(1), options), at::pow(theta, pairs).reciprocal()).unsqueeze(1);
  cos = angles.cos().to(x.scalar_type());
  sin = angles.sin().to(x.scalar_type());
}

bool Rotation::fits(const Tensor& x) const {
  return cos.defined() && cos.size(0) >= x.size(1) && cos.device() == x.device() &&
         cos.scalar_type() == x.scalar_type();
}

Rotation Rotation::first(int64_t tokens) const {
  Rotation rotation;
  rotation.cos = cos.narrow(0, 0, tokens);
  rotation.sin = sin.narrow(0, 0, tokens);
  return rotation;
}

Tensor rotate(const Tensor& x, const Rotation& rotation) {
  return Rotate::apply(x, rotation.cos, rotation.sin);
}

Tensor swiglu(const Tensor& gate, const Tensor& up) { return Swiglu::apply(gate, up); }

}  // namespace lighthouse::model
