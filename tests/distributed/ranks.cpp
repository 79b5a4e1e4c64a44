#include "tests/distributed/ranks.h"

#include <ATen/Parallel.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <cstdlib>
#include <exception>
#include <thread>

#include "lighthouse/distributed/group.h"

namespace lighthouse::testing {
namespace {

// PyTorch's flight recorder adds each group to a map without a lock: to it, ranks are processes. It
// reads its size when it is first used.
[[maybe_unused]] const bool kNoFlightRecorder =
    ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1) == 0;

}  // namespace

void run_ranks(int64_t size, const std::function<void(const distributed::World&)>& act) {
  c10d::set_thread_isolation_mode(true);  // each thread finds its own groups
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::exception_ptr> errors(size);
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        at::set_num_threads(1);
        distributed::GroupOptions options;
        options.loopback = true;
        options.timeout = std::chrono::seconds(60);  // so that a test that fails ends
        act(distributed::join(store, rank, size, rank, "world", options));
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace lighthouse::testing
