#include "apps/lighthouse/peak_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>

namespace lighthouse::app {
namespace {

std::atomic<int64_t> live{0};
std::atomic<int64_t> peak{0};

/// A block of PyTorch's allocator, with its size.
struct Block {
  c10::DataPtr data;
  int64_t bytes;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  live -= block->bytes;
  delete block;
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{base_->allocate(bytes), static_cast<int64_t>(bytes)};
    const int64_t now = live += block->bytes;
    int64_t seen = peak;
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
    return {block->data.get(), block, free_block, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* const base_ = c10::GetDefaultCPUAllocator();
};

CountingAllocator counting;

/// PyTorch keeps its statistics for all pools together, and for each.
constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

}  // namespace

PeakMemory::PeakMemory(c10::Device device) : device_(device) {
  if (device.is_cpu()) {
    live = 0;
    peak = 0;
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
  if (device_.is_cpu()) return peak;
  c10::DeviceAllocator* allocator = c10::getDeviceAllocator(device_.type());
  return allocator->getDeviceStats(device_.index()).allocated_bytes[kAll].peak - before_;
}

}  // namespace lighthouse::app
