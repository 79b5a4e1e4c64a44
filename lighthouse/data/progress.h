#pragma once

#include <cstdint>
#include <functional>
#include <utility>

namespace lighthouse::data {

/// Told what is being done, and how many bytes of it are.
using OnProgress = std::function<void(const char* what, uint64_t done, uint64_t all)>;

/// Counts bytes and tells of them now and then.
class Ticker {
 public:
  Ticker(const char* what, uint64_t all, OnProgress tell)
      : what_(what), all_(all), tell_(std::move(tell)) {}

  void add(uint64_t bytes) {
    constexpr uint64_t kBetween = uint64_t{1} << 28;
    done_ += bytes;
    if (!tell_ || done_ - told_ < kBetween) return;
    told_ = done_;
    tell_(what_, done_, all_);
  }

 private:
  const char* what_;
  uint64_t all_, done_ = 0, told_ = 0;
  OnProgress tell_;
};

}  // namespace lighthouse::data
