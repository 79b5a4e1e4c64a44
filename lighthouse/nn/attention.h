#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <optional>

#include "lighthouse/core/config.h"
#include "lighthouse/distributed/attention.h"

namespace lighthouse::nn {

enum class Mode {
  kDense,
  kLighthouse,  ///< with pieces beside, where config.local > 0
  kLocal,       ///< inside the pieces of config.local tokens alone
};

}  // namespace lighthouse::nn

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::nn::Mode>{"dense", "lighthouse",
                                                                     "local"};

namespace lighthouse::nn {

struct AttentionOptions {
  Config config;
  Mode mode = Mode::kLighthouse;
  bool lighthouse_in_eval = false;  ///< in eval mode the module is dense, whatever its mode, unless
                                    ///< this is set
  distributed::Context context = {};  ///< the ranks that share each sequence; by default none do
};

/// Causal self-attention over q, k and v that are projected already, in a mode that may be switched
/// at any step. It has no parameters and no buffers.
///
/// Where ranks share each sequence, q, k and v have this rank's tokens, and all call it at once.
///
/// In lighthouse mode it is dense all the same, and says so once, where Lighthouse cannot pay
/// (`dense_because`).
class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(AttentionOptions options = {});

  /// q (B, H, N, D), k and v (B, G, N, D) -> (B, H, N, D)
  /// @param document_starts as lighthouse::attention takes them, in every mode; where ranks share
  ///        each sequence, those of whole sequences
  torch::Tensor forward(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::optional<torch::Tensor>& document_starts = {});

  void set_mode(Mode mode) { options_.mode = mode; }
  void set_lighthouse_in_eval(bool on) { options_.lighthouse_in_eval = on; }
  void set_config(const Config& config);
  void set_context(const distributed::Context& context) { options_.context = context; }
  const AttentionOptions& options() const { return options_; }

  /// Whether a forward pass over that many tokens of this rank would compute Lighthouse now.
  /// @param documents that a row may have
  bool uses_lighthouse(int64_t tokens, int64_t documents = 1) const;

  void pretty_print(std::ostream& stream) const override;

 private:
  AttentionOptions options_;
  bool said_dense_ = false;
};
TORCH_MODULE(Attention);

}  // namespace lighthouse::nn
