#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <initializer_list>
#include <string>

namespace lighthouse::testing {

/// Succeeds where `act` throws an `Error` whose message has every part in it.
template <class Error = std::exception, class Act>
::testing::AssertionResult throws(const Act& act, std::initializer_list<std::string> parts) {
  try {
    act();
  } catch (const std::exception& error) {
    const std::string what = error.what();
    if (dynamic_cast<const Error*>(&error) == nullptr) {
      return ::testing::AssertionFailure() << "another type of error: " << what;
    }
    for (const std::string& part : parts) {
      if (what.find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "'" << part << "' is not in: " << what;
      }
    }
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

}  // namespace lighthouse::testing
