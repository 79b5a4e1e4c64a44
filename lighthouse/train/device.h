#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace lighthouse::train {

/// The device of that name: cpu, cuda or cuda:N, ready for use. Throws std::invalid_argument where
/// there is no such device here; `what` is what the message calls the name.
c10::Device find_device(const std::string& name, const std::string& what);

/// The most that PyTorch had allocated of a GPU's memory since `forget_peak_memory`; of a CPU, what
/// the process has in memory now. Bytes.
int64_t memory_in_use(c10::Device device);
void forget_peak_memory(c10::Device device);

/// Whether PyTorch computes the same bits every time on a GPU too, slower.
void use_deterministic_algorithms(bool on);

}  // namespace lighthouse::train
