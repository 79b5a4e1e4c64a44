#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "lighthouse/core/dtype.h"
#include "lighthouse/kernels/tensor_view.h"
#include "lighthouse/ops/stream.h"

/// What the operators share: checks of tensors, and the way from a tensor to a kernel.
namespace lighthouse::ops {

/// What `f` gives; a std::invalid_argument that it throws becomes a c10::ValueError.
template <class F>
auto as_value_error(const F& f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

/// What shapes follow from, as the operators take it:
/// [tokens, levels, pooling_factor, budget, tile_budget], and how many documents a row may have
/// where that is more than one.
std::vector<int64_t> geometry_list(int64_t tokens, const Config& config, int64_t documents = 1);

/// The geometry of such a list; throws c10::ValueError where it is not one, or names a field that
/// is out of its range.
Geometry make_geometry(at::IntArrayRef list);

/// The sizes that every stage shares; a compiler that traces the operators may not know them yet.
struct SymShape {
  c10::SymInt batch;
  c10::SymInt heads;
  c10::SymInt groups;
  c10::SymInt dim;

  /// Of tensors that hold something.
  Shape known() const {
    return {batch.expect_int(), heads.expect_int(), groups.expect_int(), dim.expect_int()};
  }
};

/// A size that shapes follow from: where a compiler traces, what it traces is for that size alone.
inline int64_t fixed_size(const at::Tensor& tensor, int64_t dimension) {
  return tensor.sym_size(dimension).guard_int(__FILE__, __LINE__);
}

/// Throws c10::TypeError, naming the tensor, unless it is of a type that the kernels take.
void check_floating(const at::Tensor& tensor, const char* name);

/// Checks that the tensors are (B, H, N, D) and (B, G, N, D), of one supported type and one device,
/// and that H is a multiple of G. Names in messages are `prefix` + "q" and so on.
/// @param same_tokens k and v must have as many tokens as q
SymShape check_qkv(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const std::string& prefix = "", bool same_tokens = true);

/// Under autocast the tensor in the type that autocast computes in: q, k and v may come in several
/// types then, of products and of norms.
at::Tensor autocast(const at::Tensor& tensor);

/// Throws c10::ValueError, naming the tensor, unless it has that shape, type and device.
void check_tensor(const at::Tensor& tensor, const char* name, c10::SymIntArrayRef shape,
                  at::ScalarType type, at::Device device);

/// Checks that `tensor`, (batch, heads, tokens, ...), has the tokens of the geometry.
void check_tokens(const at::Tensor& tensor, const char* name, const Geometry& geometry);

/// Checks the shape of the two maps of a selection, and on the CPU, where looking costs next to
/// nothing, the range of what they hold, since it is used as offsets.
void check_rows(const at::Tensor& rows, const Geometry& geometry, const SymShape& shape,
                at::Device device);
void check_slots(const at::Tensor& slots, const Geometry& geometry, const SymShape& shape,
                 at::Device device);

/// The tensor, copied only where its last dimension is not contiguous.
at::Tensor with_contiguous_rows(const at::Tensor& tensor);

/// The tensor itself with exactly these strides, which matter where a size is not 1; undefined
/// where it is stored in another way.
at::Tensor with_strides(const at::Tensor& tensor, at::IntArrayRef strides);

/// An empty tensor (B, H, N, D) stored as (B, N, H, D): the layout that a model's projections
/// write and read.
at::Tensor empty_tokens_major(const c10::SymInt& batch, const c10::SymInt& heads, int64_t tokens,
                              const c10::SymInt& dim, const at::TensorOptions& options);

template <class T>
Rows<const T> rows_of(const at::Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
          tensor.stride(2)};
}

template <class T>
Rows<T> mutable_rows_of(const at::Tensor& tensor) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), tensor.stride(0), tensor.stride(1),
          tensor.stride(2)};
}

/// Calls `f.template operator()<T>()` with the kernels' type for the tensors' type.
template <class F>
void dispatch(at::ScalarType type, F f) {
  switch (type) {
    case at::kFloat:
      return f.template operator()<float>();
    case at::kDouble:
      return f.template operator()<double>();
    case at::kBFloat16:
      return f.template operator()<BFloat16>();
    case at::kHalf:
      return f.template operator()<Float16>();
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked type ", type);
  }
}

/// Runs a stage where its tensors are: on_cpu(begin, end) over its work items on PyTorch's threads,
/// or on_cuda(stream) once, on the device's current stream.
/// @param item_elements about how many elements an item moves: small jobs stay on one thread
template <class OnCpu, class OnCuda>
void run(at::Device device, int64_t items, int64_t item_elements, const OnCpu& on_cpu,
         [[maybe_unused]] const OnCuda& on_cuda) {
  if (device.is_cpu()) {
    constexpr int64_t kElementsWorthAThread = 1 << 14;
    const int64_t grain =
        std::max<int64_t>(1, kElementsWorthAThread / std::max<int64_t>(1, item_elements));
    at::parallel_for(0, items, grain, on_cpu);
  } else {
    // A generic lambda is compiled where it is called: not where there are no CUDA kernels.
#ifdef LIGHTHOUSE_CUDA
    const CurrentStream stream(device);
    on_cuda(stream.get());
#else
    TORCH_CHECK(false, "this build of lighthouse has no CUDA kernels, and the tensors are on ",
                device, "; build it with -DLIGHTHOUSE_CUDA=ON");
#endif
  }
}

}  // namespace lighthouse::ops
