#pragma once

#include <chrono>
#include <string>
#include <vector>

/// The names of Gloo that PyTorch's header of its Gloo backend needs: its wheels hold Gloo itself,
/// but none of Gloo's headers. They only name types; nothing of them is compiled into the program.
/// CMake writes headers of the names that PyTorch includes, each of which includes this one.
namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace transport

namespace rendezvous {

class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout);
};

}  // namespace rendezvous
}  // namespace gloo
