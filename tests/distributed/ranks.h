#pragma once

#include <functional>

#include "lighthouse/distributed/world.h"

namespace lighthouse::testing {

/// Runs `act` on every rank of a world of threads, over Gloo, and returns when all have ended.
/// Throws what the lowest rank threw, if any did.
void run_ranks(int64_t size, const std::function<void(const distributed::World&)>& act);

}  // namespace lighthouse::testing
