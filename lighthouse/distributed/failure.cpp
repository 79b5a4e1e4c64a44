#include "lighthouse/distributed/failure.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <future>
#include <new>
#include <optional>
#include <thread>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/world.h"

namespace lighthouse::distributed {
namespace {

using std::chrono::milliseconds;
using std::chrono_literals::operator""ms;

/// What `talk` returns; nothing where it throws, or does not end in time, as with a store whose
/// process is stopped. It must hold all that it needs.
template <class Talk>
std::optional<std::string> in_time(Talk talk, milliseconds patience) {
  std::promise<std::string> promise;
  std::future<std::string> answer = promise.get_future();
  std::thread([talk = std::move(talk), promise = std::move(promise)]() mutable {
    try {
      promise.set_value(talk());
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  if (answer.wait_for(patience) != std::future_status::ready) return {};
  try {
    return answer.get();
  } catch (const std::exception&) {
    return {};
  }
}

std::string key(const char* kind, int64_t rank) { return message(kind, '/', rank); }

}  // namespace

Failures::Error Failures::describe(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const PeerError& found) {
    return {found.what(), true};
  } catch (const c10::DistError& found) {
    return {found.what_without_backtrace(), true};
  } catch (const c10::Error& found) {
    return {found.what_without_backtrace(), false};
  } catch (const std::bad_alloc&) {
    return {"out of memory", false};
  } catch (const std::exception& found) {
    return {found.what(), false};
  } catch (...) {
    return {"an unknown error", false};
  }
}

void Failures::announce(const std::string& host) const {
  store_->set(key("host", launch_.rank), host);
}

std::string Failures::name(int64_t rank) const {
  const std::string host = key("host", rank);
  return message("rank ", rank, " of ", launch_.size,
                 has(host) ? " on " + store_->get_to_str(host) : "");
}

bool Failures::is_there_one() const { return has("failure"); }

std::string Failures::last_word(const std::exception_ptr& error) {
  const Error own = describe(error);
  if (!store_) return unanswered(own);
  const auto talk = [*this, own] {
    store_->set(key("ended", launch_.rank), own.what);
    store_->add("ended", 1);
    return own.is_of_peers ? of_peers(own.what) : of_own(own.what);
  };
  if (const auto word = in_time(talk, 8 * patience_)) return *word;
  store_ = nullptr;
  return unanswered(own);
}

void Failures::linger(const std::exception_ptr& error) const {
  if (describe(error).is_of_peers) std::this_thread::sleep_for(patience_);
  const auto wait = [*this] {
    store_->add("left", 1);
    const auto all = [&] { return store_->add("left", 0) >= launch_.size; };
    if (launch_.rank == 0 && !launch_.is_served) becomes_true(all, 2 * patience_);
    return std::string();
  };
  if (store_) in_time(wait, 8 * patience_);
}

/// Asks until the answer is yes, or no further rank has ended for so long: they see one by one that
/// another is gone. Returns the last answer.
bool Failures::becomes_true(const std::function<bool()>& ask, milliseconds quiet) const {
  const auto start = std::chrono::steady_clock::now();
  auto changed = start;
  int64_t ended = 0;
  while (!ask()) {
    const auto now = std::chrono::steady_clock::now();
    if (const int64_t count = store_->add("ended", 0); count != ended) {
      ended = count;
      changed = now;
    }
    if (now >= std::min(changed + quiet, start + 5 * patience_)) return false;
    std::this_thread::sleep_for(20ms);
  }
  return true;
}

std::string Failures::of_own(const std::string& what) const {
  store_->compareSet("failure", "", message(launch_.rank, ' ', what));
  const std::string first = key("ended", 0);
  const auto is_known = [&] { return has(first) && store_->get_to_str(first) == what; };
  if (launch_.rank != 0 && becomes_true(is_known, patience_ / 2)) return "";
  return name(launch_.rank) + ": " + what;
}

std::string Failures::of_peers(const std::string& what) const {
  const bool is_first = launch_.rank == 0;
  if (is_first) {
    const auto all = [&] { return store_->add("ended", 0) >= launch_.size; };
    becomes_true([&] { return is_there_one() || all(); }, patience_);
  } else if (becomes_true([&] { return is_there_one() || has("told"); }, 2 * patience_)) {
    return "";
  }
  if (store_->add("told", 1) != 1 && !is_first) return "";
  return is_there_one() ? pointer() : who_is_missing(what);
}

std::string Failures::pointer() const {
  const std::string failure = store_->get_to_str("failure");
  const size_t space = failure.find(' ');
  return message(name(launch_.rank), " ends because ", name(std::stoll(failure)),
                 " failed: ", failure.substr(space + 1));
}

std::string Failures::who_is_missing(const std::string& what) const {
  std::string missing;
  for (int64_t rank = 0; rank < launch_.size; ++rank) {
    if (!has(key("ended", rank))) missing += (missing.empty() ? "" : ", ") + name(rank);
  }
  if (missing.empty()) return name(launch_.rank) + ": " + what;
  return message("no sign of life from ", missing,
                 ": killed, hanging, or cut off from the others (", what, ")");
}

/// There is nobody to ask who of the ranks here says it: the first of each host does, and rank 1,
/// which may be all that is left where rank 0 was.
std::string Failures::unanswered(const Error& error) const {
  if (!error.is_of_peers) {
    return message("rank ", launch_.rank, " of ", launch_.size, ": ", error.what);
  }
  if (launch_.rank != 1 && launch_.local_rank.value_or(0) != 0) return "";
  return message(
      launch_.is_served ? "no sign of life from the launcher" : "no sign of life from rank 0",
      " at ", launch_.address, ":", launch_.port, ": killed, hanging, or cut off from rank ",
      launch_.rank, " (", error.what, ")");
}

}  // namespace lighthouse::distributed
