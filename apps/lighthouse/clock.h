#pragma once

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

namespace lighthouse::app {

/// Milliseconds of several runs.
class Times {
 public:
  void add(double milliseconds) { values_.push_back(milliseconds); }
  /// Replaces each by `f` of it.
  void map(const auto& f) { std::ranges::transform(values_, values_.begin(), f); }
  double median() const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const size_t half = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
  double sum() const { return std::accumulate(values_.begin(), values_.end(), 0.0); }
  double lowest() const { return *std::min_element(values_.begin(), values_.end()); }
  double highest() const { return *std::max_element(values_.begin(), values_.end()); }
  nlohmann::ordered_json json() const {
    return {
        {"median_ms", median()}, {"min_ms", lowest()}, {"max_ms", highest()}, {"all_ms", values_}};
  }

 private:
  std::vector<double> values_;
};

/// Times what runs on a device. On a GPU, where work is queued, by events around it, so that the
/// queue never runs empty in between; what they measured is known after settle().
class Clock {
 public:
  explicit Clock(at::Device device) : device_(device) {}

  /// Adds how long what comes up to `end` takes.
  void begin(Times& times) {
    if (device_.is_cpu()) {
      begun_ = {&times, std::chrono::steady_clock::now()};
      return;
    }
    pending_.push_back({&times, Event(device_), Event(device_)});
    pending_.back().start.record();
  }
  void end() {
    if (!device_.is_cpu()) return pending_.back().end.record();
    const std::chrono::duration<double, std::milli> spent =
        std::chrono::steady_clock::now() - begun_.at;
    begun_.times->add(spent.count());
  }

  /// Runs `f` and adds how long it took.
  template <class F>
  auto time(Times& times, const F& f) {
    begin(times);
    auto result = f();
    end();
    return result;
  }

  void settle() {
    for (Pending& pending : pending_) {
      pending.end.event.synchronize();
      pending.times->add(pending.start.event.elapsedTime(pending.end.event));
    }
    pending_.clear();
  }

 private:
  struct Event {
    explicit Event(at::Device on) : event(on.type(), c10::EventFlag::BACKEND_DEFAULT), device(on) {}
    void record() { event.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device)); }

    c10::Event event;
    at::Device device;
  };
  struct Pending {
    Times* times;
    Event start, end;
  };

  struct Begun {
    Times* times = nullptr;
    std::chrono::steady_clock::time_point at;
  };

  at::Device device_;
  Begun begun_;  ///< on a CPU
  std::vector<Pending> pending_;
};

}  // namespace lighthouse::app
