#pragma once

#include <functional>
#include <vector>

#include "lighthouse/data/loader.h"
#include "lighthouse/model/llama.h"

namespace lighthouse::eval {

/// Mean loss per token, nats, over held-out batches, without gradients, in eval mode (the model is
/// put back into the mode it was in).
/// @param as_trained with the attention of training (lighthouse_in_eval), else dense
double held_out_loss(model::Llama& model, const std::vector<data::Batch>& batches, bool as_trained);

/// The loss of byte frequencies alone: the cross entropy of `held_out` under the frequencies of
/// `train` (add-one smoothed), nats per byte. The reference that any model has to beat.
double byte_frequency_loss(const std::vector<uint8_t>& train, const std::vector<uint8_t>& held_out);

/// Losses by distance from a cut.
struct LeakBin {
  int64_t first_distance, last_distance;  ///< positions before the cut: 1 is the one just before
  double mean;                            ///< rise of the loss, nats
  double standard_error;
};

/// What training-mode attention tells a position about its future (method, section 9): from a cut
/// on all inputs are replaced with random other tokens, and the rise of the losses of positions
/// before the cut is measured. Exactly zero for dense attention.
/// The target of the position just before the cut is kept.
/// @param cuts random cuts a batch, a fixed function of `seed`
std::vector<LeakBin> selection_leak(model::Llama& model, const std::vector<data::Batch>& batches,
                                    int64_t cuts, uint64_t seed, bool as_trained);

}  // namespace lighthouse::eval
