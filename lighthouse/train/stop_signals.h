#pragma once

#include <csignal>

#include <array>

namespace lighthouse::train {

/// While it exists, the first of each of SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGPIPE is
/// kept for `received` instead of ending the process. The second of the same kind ends it, except
/// for SIGPIPE, which comes again with every write. A signal that the process ignores, as under
/// nohup, stays ignored. One object at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that the newest object kept, also after its end; 0 if there was none.
  static int received();

 private:
  static constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE};

  std::array<struct sigaction, kSignals.size()> before_{};  ///< what they did
};

}  // namespace lighthouse::train
