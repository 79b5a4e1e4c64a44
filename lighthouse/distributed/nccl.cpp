#define USE_C10D_NCCL  // PyTorch's header holds nothing without it
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>

#include "lighthouse/core/hex.h"
#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {

c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            int64_t rank, int64_t size, const std::string& name,
                                            const GroupOptions& options) {
  // After a timeout PyTorch waits five times as long as the second says, by default 75 s, for dumps
  // that nobody has asked for, before it ends the process.
  setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", /*overwrite=*/0);
  setenv("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000", /*overwrite=*/0);
  // Sums in the switch (multicast) have other bits from call to call.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  // First in the queue for multiprocessors: what travels beside attention shall not wait for it.
  auto nccl = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  nccl->timeout = options.timeout;
  nccl->group_name = name;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, static_cast<int>(rank),
                                                     static_cast<int>(size), nccl);
}

std::string gpu_identity(at::Device device) {
  const auto& uuid = at::cuda::getDeviceProperties(device.index())->uuid;
  return hex(uuid.bytes, sizeof uuid.bytes);
}

}  // namespace lighthouse::distributed
