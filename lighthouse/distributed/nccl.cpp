#define USE_C10D_NCCL  // PyTorch's header holds nothing without it
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {

c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            int64_t rank, int64_t size, const std::string& name,
                                            const GroupOptions& options) {
  auto nccl = c10d::ProcessGroupNCCL::Options::create();
  nccl->timeout = options.timeout;
  nccl->group_name = name;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, static_cast<int>(rank),
                                                     static_cast<int>(size), nccl);
}

std::string gpu_identity(at::Device device) {
  std::string identity;
  for (const char byte : at::cuda::getDeviceProperties(device.index())->uuid.bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto value = static_cast<unsigned char>(byte);
    identity += {kDigits[value >> 4], kDigits[value & 15]};
  }
  return identity;
}

}  // namespace lighthouse::distributed
