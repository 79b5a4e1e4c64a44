#include "lighthouse/model/cuda/elementwise.h"

#include "lighthouse/kernels/cuda/launch.h"
#include "lighthouse/kernels/cuda/vector.cuh"

namespace lighthouse::cuda {
namespace {

/// A thread turns V pairs: a pack of a row's first half with the same one of its second half.
template <class T, int V>
__global__ void rotate_kernel(Rotate<T> args, int64_t packs, int64_t all) {
  using Acc = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= all) return;
  // Neighbouring heads of a token are neighbours in memory where a projection wrote them.
  const int64_t pack = index % packs;
  const int64_t head = index / packs % args.heads;
  const int64_t token = index / packs / args.heads % args.tokens;
  const int64_t batch = index / packs / args.heads / args.tokens;
  const int64_t half = args.dim / 2;
  const T* in = args.x.at(batch, head, token) + pack * V;
  const auto first = Pack<T, V>::load(in);
  const auto second = Pack<T, V>::load(in + half);
  const int64_t angle_row = args.angles_by_row ? batch * args.tokens + token : token;
  const int64_t angle = angle_row * half + pack * V;
  Acc turned_first[V], turned_second[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const Acc cos = args.cos[angle + i];
    const Acc sin = args.inverse ? -args.sin[angle + i] : args.sin[angle + i];
    turned_first[i] = first[i] * cos - second[i] * sin;
    turned_second[i] = second[i] * cos + first[i] * sin;
  }
  T* out = args.out.at(batch, head, token) + pack * V;
  Pack<T, V>::of(turned_first).store(out);
  Pack<T, V>::of(turned_second).store(out + half);
}

template <class Acc>
__device__ Acc sigmoid(Acc x) {
  return 1 / (1 + exp(-x));
}

template <class T, int V, bool kBackward>
__global__ void swiglu_kernel(Swiglu<T> args, int64_t packs, int64_t all) {
  using Acc = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t column = index % packs * V;
  const int64_t row = index / packs;
  const int64_t at_gate = row * 2 * args.width + column;
  const int64_t at_hidden = row * args.width + column;
  const auto gate = Pack<T, V>::load(args.gate_up + at_gate);
  const auto up = Pack<T, V>::load(args.gate_up + at_gate + args.width);
  Pack<T, V> grad;
  if constexpr (kBackward) grad = Pack<T, V>::load(args.grad_hidden + at_hidden);
  Acc hidden[V], grad_gate[V], grad_up[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const Acc share = sigmoid(gate[i]);
    const Acc silu = gate[i] * share;
    hidden[i] = silu * up[i];
    if constexpr (kBackward) {
      grad_gate[i] = grad[i] * up[i] * share * (1 + gate[i] * (1 - share));
      grad_up[i] = grad[i] * silu;
    }
  }
  Pack<T, V>::of(hidden).store(args.hidden + at_hidden);
  if constexpr (kBackward) {
    Pack<T, V>::of(grad_gate).store(args.grad_gate_up + at_gate);
    Pack<T, V>::of(grad_up).store(args.grad_gate_up + at_gate + args.width);
  }
}

/// Rows of that many elements, for with_pack.
template <class T>
Rows<const T> whole(const T* data, int64_t width) {
  return {data, 0, 0, width};
}

template <bool kBackward, class T>
void launch_swiglu(const Swiglu<T>& args, Stream stream) {
  if (args.rows == 0) return;
  const auto launch = [&]<int V>() {
    const int64_t packs = args.width / V, all = args.rows * packs;
    swiglu_kernel<T, V, kBackward>
        <<<grid_of(ceil_div(all, kBlockThreads)), kBlockThreads, 0, stream>>>(args, packs, all);
  };
  with_pack<T>(args.width, launch, whole(args.gate_up, args.width),
               whole<T>(args.hidden, args.width), whole(args.grad_hidden, args.width),
               whole<T>(args.grad_gate_up, args.width));
  check_launch("swiglu");
}

}  // namespace

template <class T>
void rotate(const Rotate<T>& args, Stream stream) {
  if (args.batch == 0) return;
  with_pack<T>(
      args.dim / 2,
      [&]<int V>() {
        const int64_t packs = args.dim / 2 / V;
        const int64_t all = args.batch * args.heads * args.tokens * packs;
        rotate_kernel<T, V>
            <<<grid_of(ceil_div(all, kBlockThreads)), kBlockThreads, 0, stream>>>(args, packs, all);
      },
      args.x, args.out);
  check_launch("rotate");
}

template <class T>
void swiglu(const Swiglu<T>& args, Stream stream) {
  launch_swiglu<false>(args, stream);
}

template <class T>
void swiglu_backward(const Swiglu<T>& args, Stream stream) {
  launch_swiglu<true>(args, stream);
}

#define INSTANTIATE(T)                            \
  template void rotate(const Rotate<T>&, Stream); \
  template void swiglu(const Swiglu<T>&, Stream); \
  template void swiglu_backward(const Swiglu<T>&, Stream);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cuda
