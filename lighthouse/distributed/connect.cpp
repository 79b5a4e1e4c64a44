#include "lighthouse/distributed/connect.h"

#include <ATen/Context.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <map>
#include <thread>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/failure.h"
#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {
namespace {

/// How long ranks that fail wait for one more to say so.
constexpr std::chrono::seconds kPatience(2);

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

/// Returns when all ranks are there, each with a place of its own. The groups would wait too, and
/// could not say for whom, nor see that one of them has failed meanwhile.
void wait_for_all(c10d::Store& store, const Launch& launch, const Failures& failures,
                  std::chrono::milliseconds timeout) {
  const auto place = [](int64_t rank) { return message("ranks/", rank); };
  check_argument(store.add(place(launch.rank), 1) == 1, "two processes say that they are rank ",
                 launch.rank, " of ", launch.size,
                 "; each needs a rank of its own: is an older run still alive at ", launch.address,
                 ":", launch.port, "?");
  if (launch.rank == 0) store.set("size", std::to_string(launch.size));
  store.add("arrived", 1);
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (true) {
    if (store.check({"size"})) {
      const std::string size = store.get_to_str("size");
      check_argument(size == std::to_string(launch.size), "rank ", launch.rank, " is of ",
                     launch.size, " ranks, and rank 0 of ", size,
                     "; all ranks must be started with one size");
      if (store.add("arrived", 0) == launch.size) return;
    }
    if (failures.is_there_one()) {
      throw PeerError("another rank failed before all of them had met");
    }
    if (std::chrono::steady_clock::now() >= end) {
      std::string missing;
      for (int64_t rank = 0; rank < launch.size; ++rank) {
        if (!store.check({place(rank)})) missing += message(missing.empty() ? "" : ", ", rank);
      }
      throw PeerError(message("rank ", launch.rank, " of ", launch.size, " waited ",
                              std::chrono::duration<double>(timeout).count(),
                              " s for ranks that did not come: ", missing));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown host";
}

void check_gpus(const std::vector<std::string>& gpus) {
  std::map<std::string, size_t> owners;
  for (size_t rank = 0; rank < gpus.size(); ++rank) {
    const auto [owner, is_new] = owners.try_emplace(gpus[rank], rank);
    check_argument(is_new, "ranks ", owner->second, " and ", rank, " have the same GPU of ",
                   first_line(gpus[rank]), ", on which rank ", rank,
                   " is one too many; start as many ranks on a host as it has GPUs: ",
                   "torchrun --nproc-per-node=GPUS, srun --ntasks-per-node=GPUS");
  }
}

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

struct Rendezvous::State {
  Launch launch;
  Environment environment;
  c10::intrusive_ptr<c10d::Store> store;  ///< where this rank has met the others

  void meet(std::chrono::milliseconds timeout);
  World connect(const ConnectOptions& options);
};

void Rendezvous::State::meet(std::chrono::milliseconds timeout) {
  store = distributed::meet(launch, timeout);
  if (launch.is_served) {
    // The launcher's store outlives the processes, and what an earlier attempt has written with it.
    const char* attempt = environment("TORCHELASTIC_RESTART_COUNT");
    store = with_prefix(message("attempt/", attempt != nullptr ? attempt : "0"), store);
  }
}

World Rendezvous::State::connect(const ConnectOptions& options) {
  meet(options.timeout);
  const Failures failures(store, launch, kPatience);
  failures.announce(host_name());
  wait_for_all(*store, launch, failures, options.timeout);
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
                              " could not connect to all others within ",
                              std::chrono::duration<double>(options.timeout).count(), " s (",
                              first_line(error.what()), ")"));
    }
  }();
#ifdef LIGHTHOUSE_CUDA
  if (group.device) check_gpus(world.gather(host_name() + '\n' + gpu_identity(*group.device)));
#endif
  return world;
}

Rendezvous::Rendezvous(Launch launch, Environment environment)
    : state_(std::make_unique<State>(std::move(launch), std::move(environment))) {}
Rendezvous::~Rendezvous() = default;

const Launch& Rendezvous::launch() const { return state_->launch; }

World Rendezvous::connect(const ConnectOptions& options) {
  return state_->launch.size == 1 ? World() : state_->connect(options);
}

void Rendezvous::end(const std::exception_ptr& error,
                     const std::function<void(const std::string&)>& say) {
  // A rank may fail before it has met the others, as by a recipe that it cannot read.
  if (!state_->store) {
    try {
      state_->meet(2 * kPatience);
      Failures(state_->store, state_->launch, kPatience).announce(host_name());
    } catch (const std::exception&) {
      state_->store = nullptr;
    }
  }
  Failures failures(state_->store, state_->launch, kPatience);
  if (const std::string word = failures.last_word(error); !word.empty()) say(word);
  failures.linger(error);
}

World connect(const Launch& launch, const ConnectOptions& options, const Environment& environment) {
  return Rendezvous(launch, environment).connect(options);
}

}  // namespace lighthouse::distributed
