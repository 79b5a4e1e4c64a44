#pragma once

#include <cstdint>
#include <string>

#include "lighthouse/distributed/world.h"
#include "lighthouse/model/language_model.h"

namespace lighthouse::eval {

/// Retrieval (method, section 10): a digit is hidden in a filler of random letters and digits, and
/// asked for at the end.
struct PasskeyTask {
  int64_t context;  ///< tokens, that is bytes, of the prompt
  double depth;     ///< where the digit is hidden, from 0, the beginning, to 1, the end
  int64_t trials;   ///< prompts
  uint64_t seed = 0;
};

/// A prompt of one trial, of exactly `context` bytes; the byte to come is the digit.
struct PasskeyPrompt {
  std::string text;
  int digit;
};

/// A fixed function of the task and the trial's number.
/// @throws std::invalid_argument where the context is too short, or the depth out of range
PasskeyPrompt passkey_prompt(const PasskeyTask& task, int64_t trial);

/// The trials in which, of the ten digits, the hidden one had the largest logit after the prompt;
/// chance is a tenth of them.
/// @param model of bytes (vocab_size 256)
/// @param as_trained with the attention of training (lighthouse_in_eval), else dense
/// @param mesh whose data ranks share out the trials, as held_out_loss does; all get the same count
/// @throws std::invalid_argument as passkey_prompt, and for a model that is not of bytes
int64_t passkeys_found(model::LanguageModel& model, const PasskeyTask& task, bool as_trained,
                       const distributed::Mesh& mesh = {});

}  // namespace lighthouse::eval
