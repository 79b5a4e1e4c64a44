#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>

#include <iostream>

#include "apps/lighthouse/device.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/train/device.h"

namespace lighthouse::app {
namespace {

/// What PyTorch's attention would take on that device, for the head dimensions that are common.
void print_attention_kernels(at::Device device, at::ScalarType type, const char* name) {
  std::cout << "  stock attention in " << name << ":";
  for (const int64_t dim : {64, 96, 128, 256}) {
    const at::Tensor q =
        at::randn({1, 2, 256, dim}, at::TensorOptions().device(device).dtype(type));
    q.set_requires_grad(true);
    std::cout << " head_dim " << dim << " " << attention_kernel(q, q, q)
              << (dim == 256 ? "\n" : ",");
  }
}

void print_info() {
  std::cout << "lighthouse " LIGHTHOUSE_VERSION "\n";
#ifdef LIGHTHOUSE_CUDA
  std::cout << "CUDA kernels: for " LIGHTHOUSE_CUDA_ARCHITECTURES
               " (from PTX a driver compiles for later cards)\n";
#else
  std::cout << "CUDA kernels: not built\n";
#endif
  std::cout << "cpu: " << describe(at::kCPU) << '\n';
  print_attention_kernels(at::kCPU, at::kFloat, "float32");
#ifdef LIGHTHOUSE_CUDA
  const int cards = at::hasCUDA() ? at::detail::getCUDAHooks().getNumGPUs() : 0;
  if (cards == 0) std::cout << "cuda: PyTorch sees no GPU on this machine\n";
  for (int i = 0; i < cards; ++i) {
    const at::Device device = train::find_device("cuda:" + std::to_string(i), "the GPU");
    std::cout << "cuda:" << i << ": " << describe(device) << '\n';
    print_attention_kernels(device, at::kBFloat16, "bfloat16");
    print_attention_kernels(device, at::kFloat, "float32");
  }
#endif
}

}  // namespace

void add_info(CLI::App& app) {
  app.add_subcommand("info",
                     "Print versions, devices, and which attention kernels of PyTorch are used")
      ->callback(print_info);
}

}  // namespace lighthouse::app
