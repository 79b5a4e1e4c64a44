#include "apps/lighthouse/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <torch/version.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "lighthouse/core/check.h"

#ifdef LIGHTHOUSE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lighthouse::app {
namespace {

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

#ifdef LIGHTHOUSE_CUDA
std::string card(int index) {
  cudaDeviceProp properties{};
  int driver = 0;
  const bool known = cudaGetDeviceProperties(&properties, index) == cudaSuccess &&
                     cudaDriverGetVersion(&driver) == cudaSuccess;
  if (!known) return "a card that does not answer";
  const auto cudnn = at::detail::getCUDAHooks().versionRuntimeCuDNN();
  return message(properties.name, " (compute capability ", properties.major, ".", properties.minor,
                 ", ", properties.multiProcessorCount, " multiprocessors, ",
                 properties.totalGlobalMem >> 30, " GiB), CUDA ", CUDART_VERSION / 1000, ".",
                 CUDART_VERSION % 1000 / 10, " (driver ", driver / 1000, ".", driver % 1000 / 10,
                 "), cuDNN ", cudnn / 10000, ".", cudnn % 10000 / 100, ".", cudnn % 100);
}
#endif

}  // namespace

std::string describe(at::Device device) {
  std::string text;
#ifdef LIGHTHOUSE_CUDA
  if (device.is_cuda()) text = card(device.index());
#endif
  if (device.is_cpu()) text = message(processor(), ", ", at::get_num_threads(), " threads");
  return text + ", PyTorch " TORCH_VERSION;
}

int64_t memory_of([[maybe_unused]] at::Device device) {
#ifdef LIGHTHOUSE_CUDA
  cudaDeviceProp properties{};
  if (device.is_cuda() && cudaGetDeviceProperties(&properties, device.index()) == cudaSuccess) {
    return static_cast<int64_t>(properties.totalGlobalMem);
  }
#endif
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

void use_attention_kernel(const std::string& name) {
  at::Context& context = at::globalContext();
  const std::map<std::string, void (at::Context::*)(bool)> kernels{
      {"cudnn", &at::Context::setSDPUseCuDNN},
      {"flash", &at::Context::setSDPUseFlash},
      {"efficient", &at::Context::setSDPUseMemEfficient},
      {"math", &at::Context::setSDPUseMath}};
  check_argument(name == "auto" || kernels.contains(name), "--attention-kernel is '", name,
                 "'; it must be auto, cudnn, flash, efficient or math");
  for (const auto& [kernel, use] : kernels) (context.*use)(name == "auto" || name == kernel);
}

std::string attention_kernel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto choice = static_cast<at::SDPBackend>(at::_fused_sdp_choice(
      q, k, v, {}, 0.0, /*is_causal=*/true, {}, /*enable_gqa=*/q.size(1) != k.size(1)));
  switch (choice) {
    case at::SDPBackend::cudnn_attention:
      return "cudnn";
    case at::SDPBackend::flash_attention:
      return "flash";
    case at::SDPBackend::efficient_attention:
      return "efficient";
    case at::SDPBackend::math:
      return "math";
    default:
      return "none";
  }
}

}  // namespace lighthouse::app
