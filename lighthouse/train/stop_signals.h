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

  /// The signal that the newest of them kept, after its end too; 0 where there was none.
  static int received();
};

}  // namespace lighthouse::train
