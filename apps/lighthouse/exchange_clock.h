#pragma once

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

  void begin() override { clock_.begin(times_); }
  void end() override { clock_.end(); }

  /// Of all exchanges until now.
  double milliseconds() {
    clock_.settle();
    return times_.sum();
  }

 private:
  Clock clock_;
  Times times_;
};

}  // namespace lighthouse::app
