#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>

#include <array>
#include <memory>

#include "lighthouse/core/check.h"
#include "tests/apps/process.h"

namespace lighthouse::app {

/// A port of this host on which nothing listens.
inline int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
}

class TwoRanksTest : public ProcessTest {
 protected:
  ~TwoRanksTest() override {
    for (const char* name : kVariables) ::unsetenv(name);
  }

  /// Starts two processes of the program as a launcher does.
  std::array<std::unique_ptr<Program>, 2> start(const std::vector<std::string>& words) {
    const std::string port = std::to_string(free_port());
    std::array<std::unique_ptr<Program>, 2> ranks;
    for (const size_t rank : {0, 1}) {
      const std::string number = std::to_string(rank);
      const std::array<std::string, kVariables.size()> values{number, number, "2", "127.0.0.1",
                                                              port};
      for (size_t i = 0; i < values.size(); ++i) ::setenv(kVariables[i], values[i].c_str(), 1);
      ranks[rank] = std::make_unique<Program>(words, output(rank));
    }
    for (const char* name : kVariables) ::unsetenv(name);
    return ranks;
  }
  fs::path output(size_t rank) const { return folder / message("output of ", rank); }

 private:
  static constexpr std::array kVariables{"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR",
                                         "MASTER_PORT"};
};

}  // namespace lighthouse::app
