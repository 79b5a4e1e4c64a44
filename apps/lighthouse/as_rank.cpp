#include "apps/lighthouse/as_rank.h"

#include <c10/util/Logging.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <thread>

#include "apps/lighthouse/verbs.h"

namespace lighthouse::app {
namespace {

distributed::Rendezvous* of_this_process = nullptr;

/// PyTorch logs connections that end at length, and on every rank. TORCH_CPP_LOG_LEVEL keeps that.
void leave_out_logs() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

/// Has one rank alone say what the ranks fail by. Of two threads that fail, the first does.
void end(const std::exception_ptr& error) {
  static std::atomic_flag ends;
  if (ends.test_and_set()) {
    std::this_thread::sleep_for(std::chrono::minutes(1));  // longer than the other one takes
    std::_Exit(kUnusable);
  }
  // A launcher that has seen another rank end asks this one to end, which may have more to say.
  std::signal(SIGTERM, SIG_IGN);
  leave_out_logs();
  of_this_process->end(error, [](const std::string& word) {
    std::cerr << "lighthouse: " + word + '\n' << std::flush;
  });
}

/// PyTorch ends a rank whose kernels wait for a rank that is gone by an exception in a thread of
/// its own, which nobody can catch.
[[noreturn]] void end_of_a_thread() {
  const std::exception_ptr error = std::current_exception();
  if (error && of_this_process != nullptr) {
    end(error);
    std::_Exit(kUnusable);
  }
  std::abort();
}

}  // namespace

void as_rank(const std::function<void(distributed::Rendezvous&)>& act) {
  distributed::Rendezvous rendezvous(distributed::read_launch(std::getenv));
  if (rendezvous.launch().size == 1) {
    act(rendezvous);
    return;
  }
  const struct Registered {
    explicit Registered(distributed::Rendezvous& found) { of_this_process = &found; }
    ~Registered() { of_this_process = nullptr; }
  } registered(rendezvous);
  std::set_terminate(end_of_a_thread);
  if (rendezvous.launch().rank != 0) leave_out_logs();
  try {
    act(rendezvous);
    return;
  } catch (const CLI::Error&) {
    throw;  // the verb's own status
  } catch (...) {
    end(std::current_exception());
  }
  throw CLI::RuntimeError(kUnusable);
}

}  // namespace lighthouse::app
