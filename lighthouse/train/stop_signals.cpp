#include "lighthouse/train/stop_signals.h"

#include <csignal>
#include <initializer_list>

namespace lighthouse::train {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void keep(int signal) { received_signal = signal; }

void handle(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  handle(keep);
}

StopSignals::~StopSignals() { handle(SIG_DFL); }

int StopSignals::received() { return received_signal; }

}  // namespace lighthouse::train
