#include "apps/lighthouse/peak_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

namespace lighthouse::app {
namespace {

/// The blocks that were allocated since the count began.
class Count {
 public:
  void begin() {
    const std::lock_guard lock(mutex_);
    bytes_of_.clear();
    live_ = peak_ = 0;
  }
  void add(const void* block, size_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_of_[block] = static_cast<int64_t>(bytes);
    live_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_, live_);
  }
  void remove(const void* block) {
    const std::lock_guard lock(mutex_);
    if (const auto found = bytes_of_.find(block); found != bytes_of_.end()) {
      live_ -= found->second;
      bytes_of_.erase(found);
    }
  }
  int64_t peak() {
    const std::lock_guard lock(mutex_);
    return peak_;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<const void*, int64_t> bytes_of_;
  int64_t live_ = 0, peak_ = 0;
};

/// Never destroyed: blocks are freed until the program's very end.
Count& count() {
  static auto* instance = new Count;
  return *instance;
}

void free_block(void* block) {
  count().remove(block);
  c10::GetDefaultCPUAllocator()->raw_deallocate(block);
}

/// Its blocks are those of PyTorch's allocator, and can be freed by their address alone: oneDNN,
/// which computes in bfloat16, asks for that.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    if (block != nullptr) count().add(block, bytes);
    return {block, block, free_block, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free_block; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

CountingAllocator counting;

/// PyTorch keeps its statistics for all pools together, and for each.
constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

}  // namespace

PeakMemory::PeakMemory(c10::Device device) : device_(device) {
  if (device.is_cpu()) {
    count().begin();
    c10::SetCPUAllocator(&counting, /*priority=*/1);
  } else {
    c10::DeviceAllocator* allocator = c10::getDeviceAllocator(device.type());
    allocator->resetPeakStats(device.index());
    before_ = allocator->getDeviceStats(device.index()).allocated_bytes[kAll].current;
  }
}

PeakMemory::~PeakMemory() {
  if (device_.is_cpu()) c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), /*priority=*/1);
}

int64_t PeakMemory::peak_bytes() const {
  if (device_.is_cpu()) return count().peak();
  c10::DeviceAllocator* allocator = c10::getDeviceAllocator(device_.type());
  return allocator->getDeviceStats(device_.index()).allocated_bytes[kAll].peak - before_;
}

}  // namespace lighthouse::app
