#pragma once

namespace lighthouse::distributed {

/// What is told where this process begins to wait for an exchange with other ranks, and where it
/// need not wait any longer: on a GPU its stream waits, and not the caller. For measurements.
/// Pairs of calls come one after the other, from whichever thread exchanges.
class ExchangeObserver {
 public:
  virtual ~ExchangeObserver() = default;
  virtual void begin() = 0;
  virtual void end() = 0;
};

/// Has every exchange of this process observed until it is called with null. Not to be called
/// during one.
void observe_exchanges(ExchangeObserver* observer);

/// An exchange, as the observer is told of it.
class Observed {
 public:
  Observed();
  ~Observed();
  Observed(const Observed&) = delete;
  Observed& operator=(const Observed&) = delete;

 private:
  ExchangeObserver* observer_;
};

}  // namespace lighthouse::distributed
