#pragma once

namespace lighthouse::train {

/// While it lives, the first SIGINT or SIGTERM is kept for `received` instead of ending the
/// process; the second ends it. One at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal; 0 while there was none.
  int received() const;
};

}  // namespace lighthouse::train
