#include "lighthouse/model/layers.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "lighthouse/core/check.h"
#include "lighthouse/ops/no_double_backward.h"

#ifdef LIGHTHOUSE_CUDA
#include "lighthouse/model/cuda/elementwise.h"
#include "lighthouse/ops/stream.h"
#include "lighthouse/ops/tensor.h"
#endif

namespace lighthouse::model {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::ScalarType angle_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// (..., width) as (rows, width).
Tensor as_rows(const Tensor& x) { return x.reshape({-1, x.size(-1)}); }

struct Normalized {
  Tensor out, rstd;
};

Normalized normalize(const Tensor& x, const Tensor& weight, double eps) {
  auto [out, rstd] = at::_fused_rms_norm(x, {x.size(-1)}, weight, eps);
  return {out, rstd};
}

/// The gradient of x, then that of the weight.
std::array<Tensor, 2> normalize_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                         const Tensor& rstd) {
  if (x.is_cuda()) {
    auto [grad_x, grad_weight] =
        at::_fused_rms_norm_backward(grad, x, {x.size(-1)}, rstd, weight, {true, true});
    return {grad_x, grad_weight};
  }
  // PyTorch has no kernel of it for the CPU. With y = x rstd: rstd (g w - y mean(g w y)).
  const Tensor y = x * rstd;
  const Tensor grad_y = grad * weight;
  const Tensor shared = (grad_y * y).mean(-1, /*keepdim=*/true);
  const Tensor grad_weight = (grad * y).flatten(0, -2).sum(0);
  return {grad_y.sub_(y * shared).mul_(rstd).to(x.scalar_type()),
          grad_weight.to(weight.scalar_type())};
}

Tensor rotated_half(const Tensor& x, const Tensor& other, const Tensor& cos, const Tensor& sin) {
  return (x * cos + other * sin).to(x.scalar_type());
}

/// silu(gate) * up of the two halves of gate_up (rows, 2 width).
Tensor swiglu(const Tensor& gate_up) {
#ifdef LIGHTHOUSE_CUDA
  if (gate_up.is_cuda()) {
    const int64_t width = gate_up.size(1) / 2;
    Tensor hidden = at::empty({gate_up.size(0), width}, gate_up.options());
    ops::dispatch(gate_up.scalar_type(), [&]<class T>() {
      const ops::CurrentStream stream(gate_up.device());
      cuda::swiglu(
          cuda::Swiglu<T>{gate_up.size(0), width, static_cast<const T*>(gate_up.const_data_ptr()),
                          static_cast<T*>(hidden.mutable_data_ptr())},
          stream.get());
    });
    return hidden;
  }
#endif
  const auto parts = gate_up.chunk(2, 1);
  return at::silu(parts[0]).mul_(parts[1]);
}

struct SwigluGradient {
  Tensor hidden, grad_gate_up;
};

/// The gradient, and what swiglu gave once more.
SwigluGradient swiglu_backward(const Tensor& grad, const Tensor& gate_up) {
  SwigluGradient result{at::empty_like(grad), at::empty_like(gate_up)};
#ifdef LIGHTHOUSE_CUDA
  if (gate_up.is_cuda()) {
    ops::dispatch(gate_up.scalar_type(), [&]<class T>() {
      const ops::CurrentStream stream(gate_up.device());
      cuda::swiglu_backward(
          cuda::Swiglu<T>{gate_up.size(0), gate_up.size(1) / 2,
                          static_cast<const T*>(gate_up.const_data_ptr()),
                          static_cast<T*>(result.hidden.mutable_data_ptr()),
                          static_cast<const T*>(grad.const_data_ptr()),
                          static_cast<T*>(result.grad_gate_up.mutable_data_ptr())},
          stream.get());
    });
    return result;
  }
#endif
  const auto parts = gate_up.chunk(2, 1);
  const auto grads = result.grad_gate_up.chunk(2, 1);
  const Tensor silu = at::silu(parts[0]);
  grads[0].copy_(at::silu_backward(grad * parts[1], parts[0]));
  at::Tensor grad_up = grads[1];
  at::mul_out(grad_up, grad, silu);
  at::mul_out(result.hidden, silu, parts[1]);
  return result;
}

/// (B N, width) projected, with a bias where there is one.
Tensor project(const Tensor& rows, const Tensor& weight, const std::optional<Tensor>& bias) {
  return bias ? at::addmm(*bias, rows, weight.t()) : at::mm(rows, weight.t());
}

/// The biases of projections that are formed as one; nothing where they have none.
std::optional<Tensor> joined(at::TensorList biases) {
  if (!biases.front().defined()) return std::nullopt;
  return at::cat(biases);
}

/// x with the bias, where there is one, of a projection that was added to it.
Tensor add_bias(const Tensor& x, const Tensor& bias) { return bias.defined() ? x + bias : x; }

class Normalize : public torch::autograd::Function<Normalize> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps) {
    const auto [out, rstd] = normalize(x, weight, eps);
    ctx->save_for_backward({x, weight, rstd});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const variable_list grads =
        ops::no_double_backward("rms_norm", {grad_outputs[0], saved[0], saved[1]}, [&] {
          const auto both = normalize_backward(grad_outputs[0], saved[0], saved[1], saved[2]);
          return variable_list(both.begin(), both.end());
        });
    return {grads[0], grads[1], Tensor()};
  }
};

/// The three projections are formed as one, of their joined weights and biases.
class ProjectHeads : public torch::autograd::Function<ProjectHeads> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm,
                               const Tensor& q, const Tensor& k, const Tensor& v,
                               const std::optional<Tensor>& bias, const Tensor& cos,
                               const Tensor& sin, double eps, int64_t head_dim) {
    const Normalized normalized = normalize(x, norm, eps);
    ctx->save_for_backward({x, norm, q, k, v, cos, sin, normalized.rstd});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["head_dim"] = head_dim;
    ctx->saved_data["has_bias"] = bias.has_value();

    // The outputs share memory and are used as tensors of their own.
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor projected = project(as_rows(normalized.out), at::cat({q, k, v}), bias);
    variable_list heads = split(projected, x, {q.size(0), k.size(0), v.size(0)}, head_dim);
    for (int i = 0; i < 2; ++i)
      rotate_out(heads[i], Rotation(cos, sin), /*inverse=*/false, heads[i]);
    return heads;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    variable_list inputs = grad_outputs;
    inputs.insert(inputs.end(), saved.begin(), saved.begin() + 5);
    const variable_list grads = ops::no_double_backward(
        "project_heads", inputs, [&] { return gradients(*ctx, saved, grad_outputs); });
    const Tensor grad_bias = grads.size() > 5 ? grads[5] : Tensor();
    return {grads[0],  grads[1], grads[2], grads[3], grads[4],
            grad_bias, Tensor(), Tensor(), Tensor(), Tensor()};
  }

 private:
  /// Those of x, norm, q, k, v, and of the bias where there is one.
  static variable_list gradients(const AutogradContext& ctx, const variable_list& saved,
                                 const variable_list& grad_outputs) {
    const Tensor &x = saved[0], &norm = saved[1], &rstd = saved[7];
    const Tensor &q = saved[2], &k = saved[3], &v = saved[4];
    const Rotation rotation(saved[5], saved[6]);
    const std::array<int64_t, 3> sizes{q.size(0), k.size(0), v.size(0)};

    const Tensor grad_projected =
        at::empty({x.numel() / x.size(-1), sizes[0] + sizes[1] + sizes[2]}, x.options());
    variable_list parts = split(grad_projected, x, sizes, ctx.saved_data.at("head_dim").toInt());
    for (int i = 0; i < 2; ++i) {
      rotate_out(grad_outputs[i], rotation, /*inverse=*/true, parts[i]);
    }
    parts[2].copy_(grad_outputs[2]);

    const Tensor normalized = normalize(x, norm, ctx.saved_data.at("eps").toDouble()).out;
    const auto grad_weights = at::mm(grad_projected.t(), as_rows(normalized))
                                  .split_with_sizes({sizes[0], sizes[1], sizes[2]});
    const Tensor grad_normalized = at::mm(grad_projected, at::cat({q, k, v})).view_as(x);
    const auto [grad_x, grad_norm] = normalize_backward(grad_normalized, x, norm, rstd);
    variable_list grads{grad_x, grad_norm, grad_weights[0], grad_weights[1], grad_weights[2]};
    if (ctx.saved_data.at("has_bias").toBool()) grads.push_back(grad_projected.sum(0));
    return grads;
  }

  /// Columns of (B N, all heads) as (B, N, heads, D) each.
  static variable_list split(const Tensor& all, const Tensor& x, std::array<int64_t, 3> sizes,
                             int64_t head_dim) {
    variable_list parts;
    for (const Tensor& part : all.split_with_sizes({sizes[0], sizes[1], sizes[2]}, 1)) {
      parts.push_back(part.unflatten(1, {-1, head_dim}).unflatten(0, {x.size(0), x.size(1)}));
    }
    return parts;
  }
};

/// Gate and up are formed as one, of their joined weights and biases. The bias of down is added by
/// what calls it.
class AddMlp : public torch::autograd::Function<AddMlp> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm,
                        const Tensor& gate, const Tensor& up, const Tensor& down,
                        const std::optional<Tensor>& bias, double eps, bool recompute) {
    const Normalized normalized = normalize(x, norm, eps);
    const Tensor gate_up = project(as_rows(normalized.out), at::cat({gate, up}), bias);
    ctx->save_for_backward({x, norm, gate, up, down, bias.value_or(Tensor()), normalized.rstd,
                            recompute ? Tensor() : gate_up});
    ctx->saved_data["eps"] = eps;
    return at::addmm(as_rows(x), swiglu(gate_up), down.t()).view_as(x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const bool has_bias = saved[5].defined();
    variable_list inputs{grad_outputs[0]};
    inputs.insert(inputs.end(), saved.begin(), saved.begin() + (has_bias ? 6 : 5));
    const variable_list grads = ops::no_double_backward("add_mlp", inputs, [&] {
      return gradients(saved, grad_outputs[0], ctx->saved_data["eps"].toDouble());
    });
    return {grads[0], grads[1], grads[2], grads[3], grads[4], has_bias ? grads[5] : Tensor(),
            Tensor(), Tensor()};
  }

 private:
  /// Those of x, norm, gate, up, down, and of the bias where there is one.
  static variable_list gradients(const variable_list& saved, const Tensor& grad_out, double eps) {
    const Tensor &x = saved[0], &norm = saved[1], &down = saved[4], &rstd = saved[6];
    const Tensor both = at::cat({saved[2], saved[3]});
    const Tensor grad = as_rows(grad_out);

    const Tensor normalized = as_rows(normalize(x, norm, eps).out);
    const auto bias = saved[5].defined() ? std::optional(saved[5]) : std::nullopt;
    const Tensor gate_up = saved[7].defined() ? saved[7] : project(normalized, both, bias);
    const auto [hidden, grad_gate_up] = swiglu_backward(at::mm(grad, down), gate_up);
    const Tensor grad_down = at::mm(grad.t(), hidden);
    const auto grad_weights = at::mm(grad_gate_up.t(), normalized).chunk(2);
    const Tensor grad_normalized = at::mm(grad_gate_up, both).view_as(x);
    const auto [grad_x, grad_norm] = normalize_backward(grad_normalized, x, norm, rstd);
    variable_list grads{grad_x.add_(grad_out), grad_norm, grad_weights[0], grad_weights[1],
                        grad_down};
    if (bias) grads.push_back(grad_gate_up.sum(0));
    return grads;
  }
};

/// YaRN's index of the pair that makes `turns` turns over the original context.
double pair_of(double turns, int64_t head_dim, double theta, const RopeScaling& scaling) {
  const double most = static_cast<double>(scaling.original_context) / (2 * std::numbers::pi);
  return static_cast<double>(head_dim) * std::log(most / turns) / (2 * std::log(theta));
}

/// How far each pair is on the way from slow, 0, to fast, 1.
Tensor speed_of(const Tensor& frequencies, int64_t head_dim, double theta,
                const RopeScaling& scaling) {
  if (scaling.type == RopeType::kLlama3) {
    const Tensor turns =
        frequencies * (static_cast<double>(scaling.original_context) / (2 * std::numbers::pi));
    return ((turns - scaling.low_frequency) / (scaling.fast_turns() - scaling.low_frequency))
        .clamp(0, 1);
  }
  double fast = pair_of(scaling.fast_turns(), head_dim, theta, scaling);
  double slow = pair_of(scaling.low_frequency, head_dim, theta, scaling);
  if (scaling.truncate) {
    fast = std::floor(fast);
    slow = std::ceil(slow);
  }
  fast = std::max(fast, 0.0);
  slow = std::min(slow, static_cast<double>(head_dim - 1));
  if (fast == slow) slow += 0.001;  // as Hugging Face has it
  const Tensor pairs = at::arange(frequencies.size(0), frequencies.options());
  return 1 - ((pairs - fast) / (slow - fast)).clamp(0, 1);
}

/// The angle of each pair at position 1, in sequences of `tokens` tokens; float32.
Tensor frequencies_of(int64_t head_dim, double theta, int64_t tokens, const RopeScaling& scaling,
                      const at::TensorOptions& options) {
  if (scaling.type == RopeType::kDynamic && tokens > scaling.original_context) {
    const double longer =
        static_cast<double>(tokens) / static_cast<double>(scaling.original_context);
    const auto dim = static_cast<double>(head_dim);
    theta *= std::pow(scaling.factor * longer - (scaling.factor - 1), dim / (dim - 2));
  }
  const Tensor pairs = at::arange(0, head_dim, 2, options) / static_cast<double>(head_dim);
  const Tensor frequencies = at::pow(theta, pairs).reciprocal();
  if (scaling.type == RopeType::kLinear) return frequencies / scaling.factor;
  if (scaling.type != RopeType::kYarn && scaling.type != RopeType::kLlama3) return frequencies;
  const Tensor fast = speed_of(frequencies, head_dim, theta, scaling);
  return (1 - fast) * frequencies / scaling.factor + fast * frequencies;
}

/// Of these positions, (N) or (B, N), in the type that the angles of x have.
Rotation rotation_of(const Tensor& positions, const Tensor& frequencies, const Tensor& x,
                     const RopeScaling& scaling) {
  const Tensor angles = positions.unsqueeze(-1) * frequencies;
  return {angles.cos().mul_(scaling.amplitude()).to(angle_type(x)),
          angles.sin().mul_(scaling.amplitude()).to(angle_type(x))};
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return Normalize::apply(x, weight.to(x.scalar_type()), eps);
}

Rotation::Rotation(int64_t head_dim, double theta, const Tensor& x, const RopeScaling& scaling) {
  const auto options = x.options().dtype(at::kFloat).requires_grad(false);
  const Tensor frequencies = frequencies_of(head_dim, theta, x.size(1), scaling, options);
  *this = rotation_of(at::arange(x.size(1), options), frequencies, x, scaling);
}

Rotation::Rotation(int64_t head_dim, double theta, const Tensor& x, const RopeScaling& scaling,
                   const Tensor& positions) {
  check_argument(scaling.type != RopeType::kDynamic,
                 "the batch has positions and rope_type is 'dynamic', whose angles depend on the "
                 "length of the whole sequence; rope_type must be another, or the positions "
                 "undefined");
  const auto options = x.options().dtype(at::kFloat).requires_grad(false);
  const Tensor frequencies = frequencies_of(head_dim, theta, x.size(1), scaling, options);
  *this = rotation_of(positions.to(options).contiguous(), frequencies, x, scaling);
}

bool Rotation::fits(const Tensor& x) const {
  return cos.defined() && cos.size(0) >= x.size(1) && cos.device() == x.device() &&
         cos.scalar_type() == angle_type(x);
}

Rotation Rotation::first(int64_t tokens) const {
  return {cos.narrow(0, 0, tokens), sin.narrow(0, 0, tokens)};
}

void rotate_out(const Tensor& x, const Rotation& rotation, bool inverse, Tensor& out) {
#ifdef LIGHTHOUSE_CUDA
  if (x.is_cuda()) {
    const Tensor in = ops::with_contiguous_rows(x.transpose(1, 2)), to = out.transpose(1, 2);
    ops::dispatch(x.scalar_type(), [&]<class T>() {
      using Acc = accumulator_t<T>;
      const ops::CurrentStream stream(x.device());
      cuda::rotate(cuda::Rotate<T>{ops::rows_of<T>(in), ops::mutable_rows_of<T>(to),
                                   rotation.cos.const_data_ptr<Acc>(),
                                   rotation.sin.const_data_ptr<Acc>(), in.size(0), in.size(1),
                                   in.size(2), in.size(3), rotation.cos.dim() == 3, inverse},
                   stream.get());
    });
    return;
  }
#endif
  const Tensor cos = rotation.cos.unsqueeze(-2);
  const Tensor sin = (inverse ? -rotation.sin : rotation.sin).unsqueeze(-2);
  const auto in = x.chunk(2, -1);
  const auto to = out.chunk(2, -1);
  const Tensor first = rotated_half(in[0], in[1], cos, -sin);
  to[1].copy_(rotated_half(in[1], in[0], cos, sin));
  to[0].copy_(first);
}

std::array<Tensor, 3> project_heads(const Tensor& x, const Norm& norm, const Projection& q,
                                    const Projection& k, const Projection& v,
                                    const Rotation& rotation, int64_t head_dim) {
  const variable_list heads = ProjectHeads::apply(x, norm.weight, q.weight, k.weight, v.weight,
                                                  joined({q.bias, k.bias, v.bias}), rotation.cos,
                                                  rotation.sin, norm.eps, head_dim);
  return {heads[0], heads[1], heads[2]};
}

Tensor add_projected(const Tensor& x, const Tensor& heads, const Projection& projection) {
  const Tensor out = at::addmm(as_rows(x), as_rows(heads.flatten(2)), projection.weight.t());
  return add_bias(out.view_as(x), projection.bias);
}

Tensor add_mlp(const Tensor& x, const Norm& norm, const Projection& gate, const Projection& up,
               const Projection& down, bool recompute) {
  const Tensor out = AddMlp::apply(x, norm.weight, gate.weight, up.weight, down.weight,
                                   joined({gate.bias, up.bias}), norm.eps, recompute);
  return add_bias(out, down.bias);
}

}  // namespace lighthouse::model
