#include "lighthouse/distributed/connect.h"

#include <ATen/Context.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <map>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {
namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// The store over which the ranks find one another.
c10::intrusive_ptr<c10d::Store> meet(const Launch& launch, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(launch.port);
  options.isServer = launch.rank == 0 && !launch.is_served;
  options.numWorkers = launch.size;
  options.waitWorkers = false;  // the groups wait, and say for whom
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::TCPStore>(launch.address, options);
  } catch (const std::exception& error) {
    const std::string what = error.what();
    check_argument(what.find("EADDRINUSE") == std::string::npos, "MASTER_PORT is ", launch.port,
                   ", which is in use on ", launch.address,
                   "; choose another: torchrun --master-port=PORT, or export MASTER_PORT=PORT");
    throw PeerError(message("rank ", launch.rank, " of ", launch.size, " cannot reach rank 0 at ",
                            launch.address, ":", launch.port,
                            "; check MASTER_ADDR and MASTER_PORT, and that rank 0 runs (",
                            first_line(what), ")"));
  }
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown host";
}

/// Throws where two ranks have the same place, or do not agree on how many there are.
void check_places(c10d::Store& store, const Launch& launch) {
  check_argument(store.add(message("ranks/", launch.rank), 1) == 1, "two processes say that they ",
                 "are rank ", launch.rank, " of ", launch.size,
                 "; each needs a rank of its own: is an older run still alive at ", launch.address,
                 ":", launch.port, "?");
  if (launch.rank == 0) {
    store.set("size", std::to_string(launch.size));
    return;
  }
  const std::string size = [&] {
    try {
      return store.get_to_str("size");
    } catch (const std::exception& error) {
      throw PeerError(message("rank ", launch.rank, " of ", launch.size,
                              " waited for rank 0, which did not come (", first_line(error.what()),
                              ")"));
    }
  }();
  check_argument(size == std::to_string(launch.size), "rank ", launch.rank, " is of ", launch.size,
                 " ranks, and rank 0 of ", size, "; all ranks must be started with one size");
}

#ifdef LIGHTHOUSE_CUDA
/// Throws where two ranks have one GPU, which NCCL cannot do.
void check_gpus(const World& world, at::Device device) {
  std::map<std::string, int64_t> owners;
  const std::string own = host_name() + '\n' + gpu_identity(device);
  const std::vector<std::string> all = world.gather(own);
  for (int64_t rank = 0; rank < world.size(); ++rank) {
    const auto [owner, is_new] = owners.try_emplace(all[rank], rank);
    check_argument(is_new, "ranks ", owner->second, " and ", rank, " have the same GPU of ",
                   first_line(all[rank]), ", on which rank ", rank,
                   " is one too many; start as many ranks on a host as it has GPUs: ",
                   "torchrun --nproc-per-node=GPUS, srun --ntasks-per-node=GPUS");
  }
}
#endif

}  // namespace

at::Device device_of(const Launch& launch, at::Device device) {
  if (!device.is_cuda() || device.has_index() || launch.size == 1) return device;
  check_argument(launch.local_rank.has_value(), "LOCAL_RANK is not set, which chooses the GPU of ",
                 "rank ", launch.rank, "; set it to the rank among those on the same host");
  const int64_t gpus = at::getNumGPUs();
  check_argument(gpus > 0, "device is cuda, and rank ", launch.rank, " on ", host_name(),
                 " sees no GPU");
  // A launcher may show each rank its own GPU alone.
  return {at::kCUDA, static_cast<c10::DeviceIndex>(*launch.local_rank % gpus)};
}

World connect(const Launch& launch, const ConnectOptions& options, const Environment& environment) {
  if (launch.size == 1) return {};
  c10::intrusive_ptr<c10d::Store> store = meet(launch, options.timeout);
  if (launch.is_served) {
    // The launcher's store outlives the processes, and what an earlier attempt has written with it.
    const char* attempt = environment("TORCHELASTIC_RESTART_COUNT");
    store = with_prefix(message("attempt/", attempt != nullptr ? attempt : "0"), store);
  }
  check_places(*store, launch);
  GroupOptions group;
  if (options.device.is_cuda()) group.device = options.device;
  if (const char* interface = environment("GLOO_SOCKET_IFNAME")) group.interface = interface;
  group.loopback = launch.address == "127.0.0.1" || launch.address == "localhost";
  group.timeout = options.timeout;
  World world = [&] {
    try {
      return join(store, launch.rank, launch.size, launch.local_rank.value_or(0), "lighthouse",
                  group);
    } catch (const std::exception& error) {
      throw PeerError(message("rank ", launch.rank, " of ", launch.size,
                              " could not connect to all others: one of them did not come within ",
                              std::chrono::duration<double>(options.timeout).count(), " s (",
                              first_line(error.what()), ")"));
    }
  }();
#ifdef LIGHTHOUSE_CUDA
  if (group.device) check_gpus(world, *group.device);
#endif
  return world;
}

}  // namespace lighthouse::distributed
