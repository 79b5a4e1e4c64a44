#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace lighthouse::app {

/// Counts the bytes of a device's tensors that are allocated while it lives, and the most that were
/// alive at once. Exact, unlike the process's resident memory, which keeps what was freed. One at a
/// time.
class PeakMemory {
 public:
  explicit PeakMemory(c10::Device device);
  ~PeakMemory();
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;

  int64_t peak_bytes() const;

 private:
  c10::Device device_;
  int64_t before_ = 0;  ///< bytes of a GPU that were allocated when it began
};

}  // namespace lighthouse::app
