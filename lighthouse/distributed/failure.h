#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <string>

#include "lighthouse/distributed/launch.h"

namespace lighthouse::distributed {

/// How the ranks of a run that fails tell one another why, in the store where they met: so that
/// what one of them died of is printed once, and not what that did to each of the others. The
/// store may be gone or hang: no call waits for it longer than eight times `patience`.
class Failures {
 public:
  /// @param store null where this rank could not reach it
  Failures(c10::intrusive_ptr<c10d::Store> store, Launch launch, std::chrono::milliseconds patience)
      : store_(std::move(store)), launch_(std::move(launch)), patience_(patience) {}

  /// Says where this rank is.
  void announce(const std::string& host) const;

  /// "rank 3 of 4 on HOST"
  std::string name(int64_t rank) const;

  /// Whether a rank has said that it fails by an error of its own.
  bool is_there_one() const;

  /// Tells the others what this rank fails by, and returns what it is to print; empty where another
  /// rank says it. An error that this rank has alone is its own to print. What all have alike, rank
  /// 0 prints. Of an error of another rank (PeerError) rank 0 prints whose it was and, where that
  /// rank could say it, what; else which ranks give no sign. Where rank 0 is gone another rank
  /// speaks for it.
  std::string last_word(const std::exception_ptr& error);

  /// Waits, after the last word, for what others still need of this rank: launchers blame the rank
  /// that ends first, which ought to be the one that failed, and rank 0 may serve the store.
  void linger(const std::exception_ptr& error) const;

 private:
  struct Error {
    std::string what;
    bool is_of_peers;
  };
  static Error describe(const std::exception_ptr& error);

  bool has(const std::string& key) const { return store_->check({key}); }
  bool becomes_true(const std::function<bool()>& ask, std::chrono::milliseconds quiet) const;
  std::string of_own(const std::string& what) const;
  std::string of_peers(const std::string& what) const;
  std::string unanswered(const Error& error) const;
  std::string pointer() const;
  std::string who_is_missing(const std::string& what) const;

  c10::intrusive_ptr<c10d::Store> store_;  ///< null where it does not answer
  Launch launch_;
  std::chrono::milliseconds patience_;
};

}  // namespace lighthouse::distributed
