#include "lighthouse/distributed/messages.h"

#include <algorithm>

#include "lighthouse/distributed/group.h"

namespace lighthouse::distributed {

Messages::Messages(c10::intrusive_ptr<c10d::ProcessGroup> processes, const char* what, int tag)
    : processes_(std::move(processes)), what_(what), tag_(tag) {}

void Messages::add(const at::Tensor& tensor, int64_t rank, bool is_sent) {
  const auto same = [&](const Message& message) {
    return message.rank == rank && message.is_sent == is_sent;
  };
  const int tag = tag_ + static_cast<int>(std::ranges::count_if(messages_, same));
  messages_.push_back({{tensor}, static_cast<int>(rank), tag, is_sent});
}
void Messages::send(const at::Tensor& tensor, int64_t to) { add(tensor, to, true); }
void Messages::receive(const at::Tensor& into, int64_t from) { add(into, from, false); }

void Messages::start() {
  if (messages_.empty()) return;
  with_peers(*processes_, what_, [&] {
    const at::DeviceType device = messages_[0].tensor[0].device().type();
    const bool together = processes_->getBackend(device)->supportsCoalescing();
    if (together) processes_->startCoalescing(device);
    for (auto& [tensor, rank, tag, is_sent] : messages_) {
      const auto work =
          is_sent ? processes_->send(tensor, rank, tag) : processes_->recv(tensor, rank, tag);
      if (!together) works_.push_back(work);
    }
    if (together) works_.push_back(processes_->endCoalescing(device));
  });
}

void Messages::finish() {
  if (messages_.empty()) return;
  with_peers(*processes_, what_, [&] {
    for (const auto& work : works_) {
      if (work) work->wait();
    }
  });
}

}  // namespace lighthouse::distributed
