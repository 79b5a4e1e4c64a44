#pragma once

#include <c10/core/Device.h>

#include <string>

namespace lighthouse::train {

/// The device of that name: cpu, cuda or cuda:N, ready for use. Throws std::invalid_argument where
/// there is no such device here; `what` is what the message calls the name.
c10::Device find_device(const std::string& name, const std::string& what);

/// Whether PyTorch computes the same bits every time on a GPU too, slower.
void use_deterministic_algorithms(bool on);

}  // namespace lighthouse::train
