#pragma once

#include <cstdint>

namespace lighthouse::app {

/// Counts the bytes of CPU tensors that are allocated while it lives, and the most that were alive
/// at once. Exact, unlike the process's resident memory, which keeps what was freed. One at a time.
class PeakMemory {
 public:
  PeakMemory();
  ~PeakMemory();
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;

  int64_t peak_bytes() const;
};

}  // namespace lighthouse::app
