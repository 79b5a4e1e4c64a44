#include "lighthouse/eval/passkey.h"

#include <ATen/ATen.h>

#include <cmath>
#include <random>
#include <string_view>

#include "lighthouse/core/check.h"
#include "lighthouse/eval/evaluating.h"

namespace lighthouse::eval {
namespace {

constexpr std::string_view kAlphanumeric =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
constexpr std::string_view kQuestion = "\nThe pass key is ";
constexpr int kLongestWord = 8;

/// So many bytes of random words.
std::string filler(int64_t bytes, std::mt19937_64& random) {
  std::string text;
  for (uint64_t left = 0; static_cast<int64_t>(text.size()) < bytes; --left) {
    if (left == 0) {
      if (!text.empty()) text += ' ';
      left = 1 + random() % kLongestWord;
    }
    text += kAlphanumeric[random() % kAlphanumeric.size()];
  }
  text.resize(static_cast<size_t>(bytes));
  return text;
}

}  // namespace

PasskeyPrompt passkey_prompt(const PasskeyTask& task, int64_t trial) {
  check_argument(task.depth >= 0 && task.depth <= 1, "a passkey's depth is ", task.depth,
                 "; it must be from 0 to 1");
  std::seed_seq seed{task.seed, static_cast<uint64_t>(task.context),
                     static_cast<uint64_t>(std::llround(task.depth * 1e6)),
                     static_cast<uint64_t>(trial)};
  std::mt19937_64 random(seed);
  const int digit = static_cast<int>(random() % 10);
  const std::string key = message(kQuestion, digit, ". Remember it.\n");
  const int64_t free =
      task.context - static_cast<int64_t>(key.size()) - static_cast<int64_t>(kQuestion.size());
  check_argument(free >= 0, "a passkey's context is ", task.context,
                 " tokens; it must be at least ", task.context - free);
  const int64_t before = std::llround(task.depth * static_cast<double>(free));
  std::string text = filler(before, random) + key;
  text += filler(free - before, random);
  text += kQuestion;
  return {text, digit};
}

int64_t passkeys_found(model::LanguageModel& model, const PasskeyTask& task, bool as_trained,
                       const distributed::Mesh& mesh) {
  check_argument(
      model.vocabulary() == 256, "the model has a vocabulary of ", model.vocabulary(),
      "; it must be of bytes, 256, to be asked for passkeys here. For any other: lighthouse "
      "export, then python -m lighthouse_attention.passkey");
  const Evaluating evaluating(model, as_trained);
  int64_t found = 0;
  for (int64_t trial = 0; trial < task.trials; ++trial) {
    if (!measures(mesh.data, trial)) continue;
    const PasskeyPrompt prompt = passkey_prompt(task, trial);
    at::Tensor tokens = at::empty({1, task.context}, at::kLong);
    std::copy(prompt.text.begin(), prompt.text.end(), tokens.data_ptr<int64_t>());
    const data::Batch part = model.part_of({tokens.to(model.device())});
    const at::Tensor logits = model.logits(part)[0][-1];
    // Of the ranks that share a prompt one has its end.
    const bool has_end =
        !part.positions.defined() || part.positions[0][-1].item<int64_t>() == task.context - 1;
    if (!has_end) continue;
    found += logits.slice(0, '0', '9' + 1).argmax().item<int64_t>() == prompt.digit ? 1 : 0;
  }
  return mesh.context.sum(mesh.data.sum(found));
}

}  // namespace lighthouse::eval
