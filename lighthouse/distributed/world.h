#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

/// Processes that work on one run, on PyTorch's process groups (NCCL on GPUs, Gloo on CPUs).
namespace lighthouse::distributed {

/// What a rank throws whose exchange with the others failed: another one ended, hangs, or lost its
/// connection. The cause lies there, as a rule, and not in the rank that throws.
class PeerError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The ranks of a run, as one of them sees them. By default that is this process alone: callers
/// ask a world for sums and maxima whether it has one rank or many.
///
/// Every rank must make the same calls in the same order. Each call takes and gives tensors of the
/// CPU, or of the device of `connect` (distributed/connect.h). Copies are the same world.
class World {
 public:
  World() = default;

  /// The world of a process group of PyTorch's, found by its name, as the operators find it: one
  /// that Python made, or a world's own.
  static World named(const std::string& group);

  int64_t rank() const;
  int64_t size() const;
  bool is_first() const { return rank() == 0; }
  /// The rank among those on the same host, which chooses the GPU.
  int64_t local_rank() const;
  /// The GPU that `connect` gave this rank; nothing on CPUs and in a world of one.
  std::optional<at::Device> gpu() const;
  /// The name of the process group, for operators that take one; empty for a world of one.
  const std::string& group() const;

  /// In place, over all ranks, with the same bits on each; any strides.
  void sum(const at::Tensor& values) const;
  void max(const at::Tensor& values) const;
  double sum(double value) const;
  int64_t sum(int64_t value) const;
  double max(double value) const;
  int64_t max(int64_t value) const;
  /// Whether `value` is true on any rank: for what all must decide alike, as to stop.
  bool any(bool value) const;

  /// The values of all ranks, in their order; they must be of one shape and type.
  std::vector<at::Tensor> gather(const at::Tensor& values) const;
  std::vector<std::string> gather(const std::string& text) const;
  /// In place: the values of one rank to all.
  void broadcast(const at::Tensor& values, int64_t from = 0) const;
  std::string broadcast(const std::string& text, int64_t from = 0) const;

  /// The r-th of `size` equal parts of the sum of `whole`, contiguous, into the contiguous `part`
  /// of rank r.
  void sum_scatter(const at::Tensor& whole, const at::Tensor& part) const;
  /// Its reverse: the parts of all ranks into `whole`, of which `part` may be a view.
  void gather_parts(const at::Tensor& part, const at::Tensor& whole) const;

  /// Returns when all ranks have called it.
  void barrier() const;
  /// Returns when `done` is true on every rank. Each asks its own again and again, with an exchange
  /// after each answer: a wait may so be longer than exchanges may take.
  void wait_until(const std::function<bool()>& done) const;

  /// Ends the world in order: returns when every rank has called it, rank 0 after the others. A
  /// world that is left without it, as after an error, waits for nobody.
  void close();

  struct Group;
  explicit World(std::shared_ptr<Group> group) : group_(std::move(group)) {}

 private:
  friend struct Mesh;
  std::shared_ptr<Group> group_;
};

/// The two ways in which the ranks of a world share the work.
struct Mesh {
  World data;  ///< ranks that have different sequences of a batch
  World
      context;  ///< ranks that have different parts of the same sequences; consecutive in the world

  /// All ranks call it, and once for a world: its groups have names of their own.
  /// @param context_size ranks that share a sequence
  /// @throws std::invalid_argument unless that divides the world
  static Mesh of(const World& world, int64_t context_size);

  /// Ends the groups that `of` made of that world, as World::close does; the world lives on.
  void close(const World& world);
};

}  // namespace lighthouse::distributed
