#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <cstdlib>

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

/// Meets the other ranks: over NCCL on GPUs, over Gloo on CPUs (through the interface that
/// GLOO_SOCKET_IFNAME names, where it is set). For a launch of one process a world of one.
/// @throws std::invalid_argument where the ranks do not fit together: a port in use, a rank given
///         twice, sizes that differ, more ranks than GPUs
/// @throws PeerError where the others do not come
World connect(const Launch& launch, const ConnectOptions& options,
              const Environment& environment = std::getenv);

}  // namespace lighthouse::distributed
