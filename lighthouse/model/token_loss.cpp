#include "lighthouse/model/token_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "lighthouse/data/batch.h"
#include "lighthouse/ops/no_double_backward.h"

namespace lighthouse::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class TokenLoss : public torch::autograd::Function<TokenLoss> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight,
                        const Tensor& targets, double z_loss) {
    const auto type = at::promote_types(hidden.scalar_type(), at::kFloat);
    const int64_t positions = hidden.size(0);
    const int64_t chunk = positions_at_once(weight.size(0), weight.device());
    Tensor losses = at::empty({positions}, hidden.options().dtype(type));
    const Tensor has_none = targets.eq(data::kNoTarget), any = targets.masked_fill(has_none, 0);
    for (int64_t begin = 0; begin < positions; begin += chunk) {
      const int64_t count = std::min(chunk, positions - begin);
      const Tensor logits = at::mm(hidden.narrow(0, begin, count), weight.t());
      const Tensor log_likelihood = at::log_softmax(logits, -1, type);
      const Tensor target = any.narrow(0, begin, count).unsqueeze(1);
      losses.narrow(0, begin, count).copy_(log_likelihood.gather(1, target).squeeze(1)).neg_();
    }
    ctx->save_for_backward({hidden, weight, targets});
    ctx->saved_data["z_loss"] = z_loss;
    return losses.masked_fill_(has_none, 0);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    variable_list grads =
        ops::no_double_backward("token_loss", {grad_outputs[0], saved[0], saved[1]}, [&] {
          return gradients(grad_outputs[0].unsqueeze(1), saved[0], saved[1], saved[2],
                           ctx->saved_data["z_loss"].toDouble());
        });
    return {grads[0], grads[1], Tensor(), Tensor()};
  }

 private:
  /// Those of hidden and weight.
  static variable_list gradients(const Tensor& grad_any, const Tensor& hidden, const Tensor& weight,
                                 const Tensor& targets, double z_loss) {
    const Tensor has_none = targets.eq(data::kNoTarget), any = targets.masked_fill(has_none, 0);
    const Tensor grad = grad_any.masked_fill(has_none.unsqueeze(1), 0);
    const int64_t positions = hidden.size(0);
    const int64_t chunk = positions_at_once(weight.size(0), weight.device());
    Tensor grad_hidden = at::empty_like(hidden);
    Tensor grad_weight = at::zeros_like(weight, grad.options());
    for (int64_t begin = 0; begin < positions; begin += chunk) {
      const int64_t count = std::min(chunk, positions - begin);
      const Tensor rows = hidden.narrow(0, begin, count);
      // d loss / d logits = (1 + 2 z_loss log Z) softmax(logits) - one_hot(target)
      const Tensor logits = at::mm(rows, weight.t());
      Tensor grad_logits = at::softmax(logits, -1, grad.scalar_type());
      const Tensor target = any.narrow(0, begin, count).unsqueeze(1);
      if (z_loss != 0) {
        const Tensor log_z = at::logsumexp(logits.to(grad.scalar_type()), 1, /*keepdim=*/true);
        grad_logits.mul_(log_z.mul_(2 * z_loss).add_(1));
      }
      grad_logits.scatter_(1, target, grad_logits.gather(1, target).sub_(1));
      grad_logits = grad_logits.mul_(grad.narrow(0, begin, count)).to(hidden.scalar_type());
      Tensor grad_rows = grad_hidden.narrow(0, begin, count);
      at::mm_out(grad_rows, grad_logits, weight);
      grad_weight.add_(at::mm(grad_logits.t(), rows));
    }
    return {grad_hidden, grad_weight.to(weight.scalar_type())};
  }
};

}  // namespace

int64_t positions_at_once(int64_t vocabulary, at::Device device) {
  const int64_t logits = int64_t{1} << (device.is_cuda() ? 25 : 20);
  return std::max<int64_t>(256, logits / vocabulary);
}

Tensor token_loss(const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                  double z_loss) {
  return TokenLoss::apply(hidden, weight, targets, z_loss);
}

}  // namespace lighthouse::model
