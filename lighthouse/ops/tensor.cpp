#include "lighthouse/ops/tensor.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>

namespace lighthouse::ops {

std::vector<int64_t> geometry_list(int64_t tokens, const Config& config, int64_t documents) {
  std::vector<int64_t> list{tokens, config.levels, config.pooling_factor, config.budget,
                            config.tile_budget};
  if (documents > 1) list.push_back(documents);
  return list;
}

Geometry make_geometry(at::IntArrayRef list) {
  TORCH_CHECK_VALUE(list.size() == 5 || list.size() == 6, "geometry is ", list,
                    "; it must be [tokens, levels, pooling_factor, budget, tile_budget], and may ",
                    "have documents at its end");
  Config config;
  config.levels = list[1];
  config.pooling_factor = list[2];
  config.budget = list[3];
  config.tile_budget = list[4];
  return as_value_error([&] { return Geometry(list[0], config, list.size() == 6 ? list[5] : 1); });
}

void check_floating(const at::Tensor& tensor, const char* name) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, name,
      " is ", type, "; it must be float32, float64, bfloat16 or float16");
}

SymShape check_qkv(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const std::string& prefix, bool same_tokens) {
  const auto check_type = [&](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == q.scalar_type(), prefix, name, " is ",
                     tensor.scalar_type(), "; it must be of the type of ", prefix, "q, ",
                     q.scalar_type());
    TORCH_CHECK_VALUE(tensor.device() == q.device(), prefix, name, " is on ", tensor.device(),
                      "; it must be on the device of ", prefix, "q, ", q.device());
  };
  TORCH_CHECK_VALUE(q.dim() == 4, prefix, "q has the shape ", q.sym_sizes(),
                    "; it must be (batch, heads, tokens, head_dim)");
  check_floating(q, (prefix + "q").c_str());
  check_type(k, "k");
  check_type(v, "v");
  SymShape shape{q.sym_size(0), q.sym_size(1), k.dim() == 4 ? k.sym_size(1) : 0, q.sym_size(3)};
  TORCH_CHECK_VALUE(shape.heads >= 1 && shape.dim >= 1 && q.sym_size(2) >= 1, prefix,
                    "q has the shape ", q.sym_sizes(),
                    "; heads, tokens and head_dim must be at least 1");
  TORCH_CHECK_VALUE(k.dim() == 4 && k.sym_size(0) == shape.batch && k.sym_size(3) == shape.dim &&
                        (same_tokens ? k.sym_size(2) == q.sym_size(2) : k.sym_size(2) >= 1),
                    prefix, "k has the shape ", k.sym_sizes(),
                    "; it must be (batch, key/value heads, tokens, head_dim) as ", prefix, "q, ",
                    q.sym_sizes(), same_tokens ? "" : ", with a token at least");
  TORCH_CHECK_VALUE(shape.groups >= 1 && shape.heads % shape.groups == 0, prefix, "k has ",
                    shape.groups, " heads; the ", shape.heads, " heads of ", prefix,
                    "q must be a multiple of them");
  TORCH_CHECK_VALUE(v.sym_sizes() == k.sym_sizes(), prefix, "v has the shape ", v.sym_sizes(),
                    "; it must be that of ", prefix, "k, ", k.sym_sizes());
  return shape;
}

at::Tensor autocast(const at::Tensor& tensor) {
  const at::DeviceType device = tensor.device().type();
  const bool is_on =
      (device == at::kCPU || device == at::kCUDA) && at::autocast::is_autocast_enabled(device);
  return is_on ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device)
               : tensor;
}

void check_tensor(const at::Tensor& tensor, const char* name, c10::SymIntArrayRef shape,
                  at::ScalarType type, at::Device device) {
  TORCH_CHECK_VALUE(tensor.sym_sizes() == shape, name, " has the shape ", tensor.sym_sizes(),
                    "; it must be ", shape);
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " is ", tensor.scalar_type(),
                   "; it must be ", type);
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), "; it must be on ",
                    device);
}

void check_tokens(const at::Tensor& tensor, const char* name, const Geometry& geometry) {
  TORCH_CHECK_VALUE(tensor.sym_size(2) == geometry.tokens, name, " has ", tensor.sym_size(2),
                    " tokens; geometry says ", geometry.tokens);
}

namespace {

void check_range(const at::Tensor& map, const char* name, int64_t least, int64_t most) {
  if (!map.is_cpu() || map.numel() == 0) return;
  const auto [lowest, highest] = at::aminmax(map);
  TORCH_CHECK_VALUE(lowest.item<int64_t>() >= least && highest.item<int64_t>() <= most, name,
                    " holds values from ", lowest.item<int64_t>(), " to ", highest.item<int64_t>(),
                    "; they must be from ", least, " to ", most,
                    ", as lighthouse::select gives them");
}

}  // namespace

void check_rows(const at::Tensor& rows, const Geometry& geometry, const SymShape& shape,
                at::Device device) {
  check_tensor(rows, "rows", {shape.batch, shape.groups, geometry.rows}, at::kInt, device);
  check_range(rows, "rows", 0, geometry.first[geometry.levels] - 1);
}

void check_slots(const at::Tensor& slots, const Geometry& geometry, const SymShape& shape,
                 at::Device device) {
  check_tensor(slots, "slots", {shape.batch, shape.groups, geometry.coarse_entries()}, at::kInt,
               device);
  check_range(slots, "slots", kNoSlot, make_slot(geometry.rows - 1, true));
}

at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return tensor.sym_stride(-1) == 1 || tensor.sym_size(-1) == 1 ? tensor : tensor.contiguous();
}

at::Tensor with_strides(const at::Tensor& tensor, at::IntArrayRef strides) {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != strides[i]) return {};
  }
  return tensor.as_strided(tensor.sizes(), strides);
}

at::Tensor empty_tokens_major(const c10::SymInt& batch, const c10::SymInt& heads, int64_t tokens,
                              const c10::SymInt& dim, const at::TensorOptions& options) {
  return at::empty_symint({batch, tokens, heads, dim}, options).transpose(1, 2);
}

}  // namespace lighthouse::ops
