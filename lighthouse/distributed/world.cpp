#include "lighthouse/distributed/world.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstring>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/collectives.h"
#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {
namespace {

using at::Tensor;
using c10d::ReduceOp;
using Work = c10::intrusive_ptr<c10d::Work>;

/// Runs an exchange to its end; on a GPU, queues it.
template <class Start>
void exchange(const World::Group& group, const char* what, const Start& start) {
  with_peers(*group.processes, what, [&] {
    if (const Work work = start(*group.processes)) work->wait();
  });
}

void reduce(const World::Group& group, const Tensor& values, const ReduceOp& op) {
  const char* what = op == ReduceOp::SUM ? "take a sum" : "take a maximum";
  std::vector<Tensor> flat{values.detach().contiguous()};
  exchange(group, what, [&](c10d::ProcessGroup& processes) {
    c10d::AllreduceOptions options;
    options.reduceOp = op;
    return processes.allreduce(flat, options);
  });
  if (!flat[0].is_alias_of(values)) values.detach().copy_(flat[0]);
}

/// A number as a tensor of the CPU.
template <class T>
Tensor as_tensor(T value) {
  return at::full({1}, value, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

/// The sum or maximum of a number over all ranks; without a group there is nothing to exchange.
template <class T>
T of_all(const World::Group* group, T value, const ReduceOp& op) {
  if (group == nullptr) return value;
  const Tensor tensor = as_tensor(value);
  reduce(*group, tensor, op);
  return tensor.item<T>();
}

/// A text as bytes, with zeros behind it: some, as no exchange takes an empty tensor.
Tensor as_bytes(const std::string& text, int64_t size) {
  Tensor bytes = at::zeros({size}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr<uint8_t>(), text.data(), text.size());
  return bytes;
}
std::string as_text(const Tensor& bytes, int64_t size) {
  return {reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>()),
          static_cast<size_t>(size)};
}

}  // namespace

int64_t World::rank() const { return group_ ? group_->processes->getRank() : 0; }
int64_t World::size() const { return group_ ? group_->processes->getSize() : 1; }
int64_t World::local_rank() const { return group_ ? group_->local_rank : 0; }
std::optional<at::Device> World::gpu() const {
  return group_ ? group_->options.device : std::nullopt;
}

const std::string& World::group() const {
  static const std::string none;
  return group_ ? group_->name : none;
}

void World::sum(const Tensor& values) const {
  if (group_) reduce(*group_, values, ReduceOp::SUM);
}
void World::max(const Tensor& values) const {
  if (group_) reduce(*group_, values, ReduceOp::MAX);
}

double World::sum(double value) const { return of_all(group_.get(), value, ReduceOp::SUM); }
int64_t World::sum(int64_t value) const { return of_all(group_.get(), value, ReduceOp::SUM); }
double World::max(double value) const { return of_all(group_.get(), value, ReduceOp::MAX); }
int64_t World::max(int64_t value) const { return of_all(group_.get(), value, ReduceOp::MAX); }
bool World::any(bool value) const { return max(static_cast<int64_t>(value)) != 0; }

std::vector<Tensor> World::gather(const Tensor& values) const {
  if (!group_) return {values.detach().clone()};
  std::vector<Tensor> own{values.detach().contiguous()};
  std::vector<std::vector<Tensor>> all(1);
  for (int64_t i = 0; i < size(); ++i) all[0].push_back(at::empty_like(own[0]));
  exchange(*group_, "gather",
           [&](c10d::ProcessGroup& processes) { return processes.allgather(all, own); });
  return all[0];
}

std::vector<std::string> World::gather(const std::string& text) const {
  if (!group_) return {text};
  const auto length = static_cast<int64_t>(text.size());
  const std::vector<Tensor> lengths = gather(as_tensor(length));
  const std::vector<Tensor> bytes = gather(as_bytes(text, max(length) + 1));
  std::vector<std::string> texts;
  for (size_t i = 0; i < bytes.size(); ++i) {
    texts.push_back(as_text(bytes[i], lengths[i].item<int64_t>()));
  }
  return texts;
}

void World::broadcast(const Tensor& values, int64_t from) const {
  if (!group_) return;
  std::vector<Tensor> flat{values.detach().contiguous()};
  exchange(*group_, "broadcast", [&](c10d::ProcessGroup& processes) {
    c10d::BroadcastOptions options;
    options.rootRank = from;
    return processes.broadcast(flat, options);
  });
  if (!flat[0].is_alias_of(values)) values.detach().copy_(flat[0]);
}

std::string World::broadcast(const std::string& text, int64_t from) const {
  if (!group_) return text;
  const Tensor length = as_tensor(static_cast<int64_t>(text.size()));
  broadcast(length, from);
  const auto size = length.item<int64_t>();
  const Tensor bytes = as_bytes(rank() == from ? text : "", size + 1);
  broadcast(bytes, from);
  return as_text(bytes, size);
}

void World::sum_scatter(const Tensor& whole, const Tensor& part) const {
  TORCH_INTERNAL_ASSERT(whole.is_contiguous() && part.is_contiguous() &&
                        whole.numel() == size() * part.numel());
  Tensor from = whole.detach(), to = part.detach();
  if (!group_) {
    to.copy_(from.view_as(to));
    return;
  }
  exchange(*group_, "take a sum", [&](c10d::ProcessGroup& processes) {
    return reduce_scatter_single(processes, to, from);
  });
}

void World::gather_parts(const Tensor& part, const Tensor& whole) const {
  TORCH_INTERNAL_ASSERT(whole.is_contiguous() && part.is_contiguous() &&
                        whole.numel() == size() * part.numel());
  Tensor from = part.detach(), to = whole.detach();
  if (!group_) {
    to.copy_(from.view_as(to));
    return;
  }
  exchange(*group_, "gather",
           [&](c10d::ProcessGroup& processes) { return all_gather_single(processes, to, from); });
}

// A sum, and not the group's own barrier, which fills a static variable: ranks may be threads.
void World::barrier() const { sum(int64_t{0}); }

void World::wait_until(const std::function<bool()>& done) const {
  while (any(!done())) {
  }
}

void World::close() {
  if (!group_) return;
  barrier();
  if (group_->owned) {
    group_->processes->shutdown();
    // Rank 0 may serve the store: nobody may need it any more when it leaves.
    const auto left = [](int64_t rank) { return message("left/", rank); };
    if (!is_first()) {
      group_->store->set(left(rank()), std::string("1"));
    } else {
      std::vector<std::string> others;
      for (int64_t i = 1; i < size(); ++i) others.push_back(left(i));
      group_->store->wait(others, group_->options.timeout);
    }
  }
  group_ = nullptr;
}

World World::named(const std::string& group) {
  auto members = std::make_shared<Group>();
  members->processes = c10d::resolve_process_group(group);
  members->name = group;
  return World(std::move(members));
}

World::Group::~Group() {
  if (owned) c10d::unregister_process_group(name);
}

Mesh Mesh::of(const World& world, int64_t context_size) {
  check_argument(context_size >= 1 && world.size() % context_size == 0, "context is ", context_size,
                 " ranks; they must divide the ", world.size(), " ranks of the run");
  if (!world.group_) return {};
  const World::Group& whole = *world.group_;
  const auto sub_world = [&](const char* kind, int64_t which, int64_t rank, int64_t size) {
    if (size == 1) return World();
    if (size == world.size()) return world;
    check_argument(whole.store != nullptr, "the world is that of the process group '", whole.name,
                   "', found by its name; only one that `connect` made can be cut into parts");
    const std::string name = message(whole.name, ".", kind, ".", which);
    return join(whole.store, rank, size, whole.local_rank, name, whole.options);
  };
  const int64_t data = world.rank() / context_size, context = world.rank() % context_size;
  return {.data = sub_world("data", context, data, world.size() / context_size),
          .context = sub_world("context", data, context, context_size)};
}

void Mesh::close(const World& world) {
  for (World* part : {&data, &context}) {
    if (part->group() != world.group()) part->close();
  }
  *this = {};
}

}  // namespace lighthouse::distributed
