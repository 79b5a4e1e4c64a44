#pragma once

#include <map>
#include <string>

#include "apps/lighthouse/clock.h"
#include "lighthouse/distributed/exchange_observer.h"

namespace lighthouse::app {

/// Times, while it lives, how long this rank does nothing but wait for others: on a GPU the time
/// between events on its stream right before and after each wait, so that what an exchange does
/// beside computation costs nothing; on a CPU that of the calls. Where another rank is late, that
/// is part of it.
class ExchangeClock final : public distributed::ExchangeObserver {
 public:
  explicit ExchangeClock(at::Device device) : clock_(device) {
    distributed::observe_exchanges(this);
  }
  ~ExchangeClock() override { distributed::observe_exchanges(nullptr); }
  ExchangeClock(const ExchangeClock&) = delete;
  ExchangeClock& operator=(const ExchangeClock&) = delete;

  void begin(const char* what) override { clock_.begin(times_[what]); }
  void end() override { clock_.end(); }

  /// Of all exchanges until now, by what they were for.
  std::map<std::string, double> milliseconds() {
    clock_.settle();
    std::map<std::string, double> sums;
    for (const auto& [what, times] : times_) sums[what] = times.sum();
    return sums;
  }

 private:
  Clock clock_;
  std::map<std::string, Times> times_;
};

}  // namespace lighthouse::app
