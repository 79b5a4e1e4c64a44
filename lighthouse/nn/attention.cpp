#include "lighthouse/nn/attention.h"

#include <c10/util/Exception.h>

#include <mutex>
#include <set>

#include "lighthouse/core/settings.h"

namespace lighthouse::nn {
namespace {

/// All layers of a model have the same to say: it is said once for the whole process.
void say_once(const std::string& reason) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (said.insert(reason).second) TORCH_WARN("lighthouse: attention is dense, because ", reason);
}

}  // namespace

AttentionImpl::AttentionImpl(AttentionOptions options) : options_(options) {
  options_.config.validate();
}

void AttentionImpl::set_config(const Config& config) {
  config.validate();
  options_.config = config;
  said_dense_ = false;
}

bool AttentionImpl::uses_lighthouse(int64_t tokens, int64_t documents) const {
  return options_.mode == Mode::kLighthouse && (is_training() || options_.lighthouse_in_eval) &&
         distributed::dense_because(tokens, options_.config, options_.context, documents).empty();
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v,
                                     const std::optional<torch::Tensor>& document_starts) {
  const auto& [config, mode, lighthouse_in_eval, context] = options_;
  if (mode == Mode::kDense || !(is_training() || lighthouse_in_eval)) {
    return distributed::dense_attention(q, k, v, context, config.scale, document_starts);
  }
  if (mode == Mode::kLocal) {
    return distributed::local_attention(q, k, v, config, context, document_starts);
  }
  const int64_t documents = document_starts ? document_starts->size(-1) : 1;
  const std::string reason = distributed::dense_because(q.size(2), config, context, documents);
  if (reason.empty()) {
    return distributed::attention(q, k, v, config, context, {}, document_starts);
  }
  if (!said_dense_) say_once(reason);
  said_dense_ = true;
  return distributed::dense_attention(q, k, v, context, config.scale, document_starts);
}

void AttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "lighthouse::nn::Attention(mode=" << to_string(options_.mode) << ", "
         << describe(options_.config) << ")";
}

}  // namespace lighthouse::nn
