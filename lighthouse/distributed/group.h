#pragma once

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <optional>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/exchange_observer.h"
#include "lighthouse/distributed/world.h"

/// What a world is made of. PyTorch's headers take seconds to parse: include this in few files.
namespace lighthouse::distributed {

/// What makes a group's backends. Without a GPU, Gloo alone.
struct GroupOptions {
  std::optional<at::Device> device;  ///< of the GPU
  std::string interface;  ///< the network interface of Gloo; empty: that of the host's name
  bool loopback = false;  ///< Gloo's connections stay on this host
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
};

/// A member of a process group, registered under its name while it lives.
struct World::Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroup> processes;
  std::string name;
  int64_t local_rank = 0;
  GroupOptions options;
  bool owned = false;  ///< made and registered by us, and not found by its name

  Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group();
};

/// A world whose members meet in a store. All of them call it with the same name, which is free.
World join(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t size,
           int64_t local_rank, const std::string& name, const GroupOptions& options);

/// The backend of a group on GPUs, in a file of its own.
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            int64_t rank, int64_t size, const std::string& name,
                                            const GroupOptions& options);

/// What tells a GPU from every other; in that file too.
std::string gpu_identity(at::Device device);

PeerError peer_error(const c10d::ProcessGroup& processes, const char* what, const std::string& why);

/// What `f` gives, which exchanges something with the other ranks. Where one of them ended or did
/// not answer, throws PeerError. What this rank got wrong, or had no memory for, is thrown as it
/// is.
/// @param what could not be done, for the message
template <class F>
auto with_peers(const c10d::ProcessGroup& processes, const char* what, const F& f) {
  const Observed observed(what);
  try {
    return f();
  } catch (const c10::DistError& error) {
    throw peer_error(processes, what, error.what_without_backtrace());
  } catch (const std::runtime_error& error) {  // Gloo's; all others of PyTorch's are c10::Error
    throw peer_error(processes, what, error.what());
  }
}

/// A store in which keys begin with the name of a group.
c10::intrusive_ptr<c10d::Store> with_prefix(const std::string& name,
                                            const c10::intrusive_ptr<c10d::Store>& store);

}  // namespace lighthouse::distributed
