#include "lighthouse/distributed/exchange_observer.h"

#include <atomic>

namespace lighthouse::distributed {
namespace {

std::atomic<ExchangeObserver*> the_observer{nullptr};

}  // namespace

void observe_exchanges(ExchangeObserver* observer) { the_observer = observer; }

Observed::Observed(const char* what) : observer_(the_observer) {
  if (observer_ != nullptr) observer_->begin(what);
}
Observed::~Observed() {
  if (observer_ != nullptr) observer_->end();
}

}  // namespace lighthouse::distributed
