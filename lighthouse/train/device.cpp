#include "lighthouse/train/device.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>

#include "lighthouse/core/check.h"

namespace lighthouse::train {

c10::Device find_device(const std::string& name, const std::string& what) {
  if (name == "cpu") return at::kCPU;
  constexpr std::string_view kIndexed = "cuda:";
  int index = 0;
  bool known = name == "cuda";
  if (name.starts_with(kIndexed)) {
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kIndexed.size(), end, index);
    known = parsed.ec == std::errc() && parsed.ptr == end && index >= 0;
  }
  check_argument(known, what, " is '", name, "'; it must be cpu, cuda or cuda:N");
#ifdef LIGHTHOUSE_CUDA
  const int cards = at::hasCUDA() ? at::detail::getCUDAHooks().getNumGPUs() : 0;
  check_argument(cards > 0, what, " is '", name, "', but PyTorch sees no GPU on this machine");
  check_argument(index < cards, what, " is '", name, "'; there are ", cards,
                 " GPUs, cuda:0 to cuda:", cards - 1);
  at::globalContext().lazyInitDevice(at::kCUDA);
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
#else
  check_argument(false, what, " is '", name, "', but this build has no CUDA kernels");
  return at::kCPU;
#endif
}

int64_t memory_in_use(c10::Device device) {
  if (device.is_cpu()) {
    int64_t all = 0, resident = 0;  // pages
    std::ifstream("/proc/self/statm") >> all >> resident;
    return resident * sysconf(_SC_PAGE_SIZE);
  }
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[kAll].peak;
}

void forget_peak_memory(c10::Device device) {
  if (device.is_cuda()) c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

void use_deterministic_algorithms(bool on) {
  at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/false);
  // Ours write all of what they allocate.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
}

}  // namespace lighthouse::train
