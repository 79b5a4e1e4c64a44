#pragma once

#include <functional>

#include "lighthouse/distributed/connect.h"

namespace lighthouse::app {

/// Runs `act` as this process's rank of the launch that the environment tells of, or alone where
/// there is none. It connects by the rendezvous and keeps no world after its end. What ranks fail
/// by is printed once, by the rank that knows best; the others end with the same status.
void as_rank(const std::function<void(distributed::Rendezvous& rendezvous)>& act);

}  // namespace lighthouse::app
