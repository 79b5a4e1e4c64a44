#include "lighthouse/distributed/group.h"

#define USE_C10D_GLOO  // PyTorch's header holds nothing without it
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace lighthouse::distributed {
namespace {

using c10d::ProcessGroup;
using c10d::ProcessGroupGloo;

c10::intrusive_ptr<c10d::Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                            int64_t rank, int64_t size, const std::string& name,
                                            const GroupOptions& options) {
  auto gloo = ProcessGroupGloo::Options::create(options.timeout);
  gloo->group_name = name;
  gloo->devices.push_back(options.loopback ? ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                          : options.interface.empty()
                              ? ProcessGroupGloo::createDefaultDevice()
                              : ProcessGroupGloo::createDeviceForInterface(options.interface));
  return c10::make_intrusive<ProcessGroupGloo>(store, static_cast<int>(rank),
                                               static_cast<int>(size), gloo);
}

}  // namespace

PeerError peer_error(const ProcessGroup& processes, const char* what, const std::string& why) {
  std::string line = why.substr(0, why.find('\n'));
  // Gloo begins with the place in its source: "[/path/pair.cc:547] Connection closed by peer".
  if (const size_t end = line.find("] "); line.starts_with('[') && end != std::string::npos) {
    line.erase(0, end + 2);
  }
  return PeerError(message("rank ", processes.getRank(), " of ", processes.getSize(), " could not ",
                           what, " with the others: one of them ended, or did not answer in time (",
                           line, ")"));
}

c10::intrusive_ptr<c10d::Store> with_prefix(const std::string& name,
                                            const c10::intrusive_ptr<c10d::Store>& store) {
  return c10::make_intrusive<c10d::PrefixStore>(name, store);
}

World join(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t size,
           int64_t local_rank, const std::string& name, const GroupOptions& options) {
  auto group = std::make_shared<World::Group>();
  group->store = with_prefix(name, store);
  group->local_rank = local_rank;
  group->options = options;
  const auto processes = c10::make_intrusive<ProcessGroup>(group->store, static_cast<int>(rank),
                                                           static_cast<int>(size));
  processes->setGroupName(name);
  if (options.device) processes->setBoundDeviceId(options.device);
  processes->setBackend(at::kCPU, ProcessGroup::BackendType::GLOO,
                        make_gloo(with_prefix("cpu", group->store), rank, size, name, options));
  processes->setDefaultBackend(ProcessGroup::BackendType::GLOO);
#ifdef LIGHTHOUSE_CUDA
  if (options.device) {
    processes->setBackend(at::kCUDA, ProcessGroup::BackendType::NCCL,
                          make_nccl(with_prefix("cuda", group->store), rank, size, name, options));
    processes->setDefaultBackend(ProcessGroup::BackendType::NCCL);
  }
#endif
  c10d::register_process_group(name, processes);
  group->owned = true;
  group->processes = processes;
  group->name = name;
  return World(std::move(group));
}

}  // namespace lighthouse::distributed
