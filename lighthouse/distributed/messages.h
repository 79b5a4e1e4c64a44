#pragma once

#include <ATen/core/Tensor.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

namespace lighthouse::distributed {

/// Tensors on their way between this rank and others, straight from and to the places that are
/// named. On a GPU, queued; all of them in one launch.
class Messages {
 public:
  /// @param what they are for, as errors say it
  /// @param tag tells messages apart that are on their way at once; as many tags as there are
  /// messages to a rank are taken
  Messages(c10::intrusive_ptr<c10d::ProcessGroup> processes, const char* what, int tag = 0);

  /// Contiguous tensors; what one rank sends is received by the other in that order.
  void send(const at::Tensor& tensor, int64_t to);
  void receive(const at::Tensor& into, int64_t from);
  void start();
  void finish();

 private:
  struct Message {
    std::vector<at::Tensor> tensor;  ///< the one; c10d takes lists
    int rank, tag;
    bool is_sent;
  };
  void add(const at::Tensor& tensor, int64_t rank, bool is_sent);

  c10::intrusive_ptr<c10d::ProcessGroup> processes_;
  const char* what_;
  int tag_;
  std::vector<Message> messages_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

}  // namespace lighthouse::distributed
