#pragma once

namespace lighthouse::distributed {

/// What is told where this process begins to wait for an exchange with other ranks, and where it
/// need not wait any longer: on a GPU its stream waits, and not the caller. For measurements.
/// Pairs of calls come one after the other, from whichever thread exchanges.
/// `what` is the exchange as errors name it, such as "take a sum"; it stays valid.
class ExchangeObserver {
 public:
  virtual ~ExchangeObserver() = default;
  virtual void begin(const char* what) = 0;
  virtual void end() = 0;
};

/// Has every exchange of this process observed until it is called with null. Not to be called
/// during one.
void observe_exchanges(ExchangeObserver* observer);

/// An exchange, as the observer is told of it.
class Observed {
 public:
  explicit Observed(const char* what);
  ~Observed();
  Observed(const Observed&) = delete;
  Observed& operator=(const Observed&) = delete;

 private:
  ExchangeObserver* observer_;
};

}  // namespace lighthouse::distributed
