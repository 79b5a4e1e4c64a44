#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lighthouse/data/batch.h"
#include "lighthouse/data/tokens.h"
#include "lighthouse/distributed/world.h"
#include "lighthouse/model/language_model.h"

namespace lighthouse::eval {

/// A mean and its standard error, over sequences; NaN for a single one.
struct Estimate {
  double mean, standard_error;
};

/// The mean over some positions of a sequence, counted from 0, or over some distances before a cut,
/// where 1 is the position just before it: those from first to last.
struct Bin {
  int64_t first, last;
  Estimate estimate;
};

/// Losses per token that has a target, nats. Sequences without one are left out.
struct HeldOutLoss {
  Estimate all;
  /// Positions 0 to 63, then each time as many again: whether the far context is used. Where
  /// attention stays inside documents, positions count from the start of each; those that no
  /// sequence has are left out.
  std::vector<Bin> by_position;
  std::vector<double> of_sequences;  ///< the mean of each: what pairs two models' losses
};

/// Measures held-out batches of one context, on any device, without gradients, in eval mode (the
/// model is put back into the mode it was in).
/// @param as_trained with the attention of training (lighthouse_in_eval), else dense
/// @param before_batch is called before each batch, as often on each rank, and may throw to end the
///        measurement
/// @param mesh whose data ranks share out the batches, and context ranks compute each together, as
///        the model's plan says; all have the same batches, and get the figures of one process
/// @throws std::invalid_argument where there are no batches, or they are not of one context
HeldOutLoss held_out_loss(model::LanguageModel& model, const std::vector<data::Batch>& batches,
                          bool as_trained, const std::function<void()>& before_batch = {},
                          const distributed::Mesh& mesh = {});

/// The loss of token frequencies alone: the cross entropy of `held_out` under the frequencies of
/// `train` (add-one smoothed), nats per token. The reference that any model has to beat. Of more
/// than 2^26 tokens the first are counted.
/// @throws std::invalid_argument where `held_out` is empty
double token_frequency_loss(const data::Tokens& train, const data::Tokens& held_out,
                            int64_t vocabulary = 256);

/// What attention tells a position about its future (method, section 9): from a cut on, all inputs
/// are replaced with random other tokens, and the rise of the losses of positions before the cut is
/// measured, in eval mode. All targets are kept, also that of the position just before the cut.
/// Exactly zero where attention is dense. Documents begin where they did; positions without a
/// target are left out.
///
/// @param batches of 2 tokens or more, on any device
/// @param cuts of each sequence; where they fall and what replaces the inputs are a fixed function
///        of `seed`
/// @param as_trained with the attention of training (lighthouse_in_eval), else dense
/// @param mesh whose data ranks share out the batches, and context ranks compute each together, as
///        the model's plan says; all have the same batches, and get the figures of one process
/// @return the rise of the loss at the distances 1, 2-4, 5-16, 17-64 and 65-256, where some cut has
///         such positions, nats; the standard errors are over cuts
/// @throws std::invalid_argument where there is no cut to measure, or a sequence is too short
std::vector<Bin> selection_leak(model::LanguageModel& model,
                                const std::vector<data::Batch>& batches, int64_t cuts,
                                uint64_t seed, bool as_trained, const distributed::Mesh& mesh = {});

}  // namespace lighthouse::eval
