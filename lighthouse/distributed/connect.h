#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lighthouse/distributed/launch.h"
#include "lighthouse/distributed/world.h"

namespace lighthouse::distributed {

struct ConnectOptions {
  at::Device device = at::kCPU;  ///< of this rank, as `device_of` says
  /// How long a rank waits for another, at the start and in every exchange.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
};

/// The device of this rank where all asked for `device`: of several GPUs that of its local rank.
at::Device device_of(const Launch& launch, at::Device device);

/// The name of the machine that this process runs on.
std::string host_name();

/// Throws std::invalid_argument where two ranks have one GPU, which NCCL cannot do.
/// @param gpus of each rank: the name of its host, a new line, and what tells the GPU from others
void check_gpus(const std::vector<std::string>& gpus);

/// The way of this process to the other ranks of its launch. It outlives the world that it connects
/// to, so that a rank that fails can still tell the others why. For a launch of one process there
/// is nobody to meet.
class Rendezvous {
 public:
  explicit Rendezvous(Launch launch, Environment environment = std::getenv);
  ~Rendezvous();
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  const Launch& launch() const;

  /// Meets the other ranks: over NCCL on GPUs, over Gloo on CPUs (through the interface that
  /// GLOO_SOCKET_IFNAME names, where it is set).
  /// @throws std::invalid_argument where the ranks do not fit together: a port in use, a rank given
  ///         twice, sizes that differ, more ranks than GPUs
  /// @throws PeerError where the others do not come, or one of them fails meanwhile
  World connect(const ConnectOptions& options);

  /// Tells the other ranks what this one fails by, and has one rank alone `say` it, after which the
  /// process should end. Call it when the world of `connect` is destroyed, which tells the others
  /// that this rank is gone. Takes some 15 seconds at most.
  /// @param say prints a line; called once where this rank is to print the error, else not
  void end(const std::exception_ptr& error, const std::function<void(const std::string&)>& say);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The same in one call, where an error is printed by whoever has it.
World connect(const Launch& launch, const ConnectOptions& options,
              const Environment& environment = std::getenv);

}  // namespace lighthouse::distributed
