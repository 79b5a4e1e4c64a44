#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "lighthouse/core/config.h"
#include "lighthouse/core/words.h"
#include "lighthouse/data/source.h"
#include "lighthouse/distributed/choose_exchange.h"
#include "lighthouse/model/model_config.h"
#include "lighthouse/nn/attention.h"

namespace lighthouse::run {

/// How the learning rate falls after the warm-up, to its final share.
enum class Decay {
  kLinear,
  kCosine,
  kStable,  ///< at the peak until the last decay_share of the run, then linearly
};

/// The type that a model computes in. Its weights are kept in float32.
enum class Dtype { kFloat32, kBFloat16 };

}  // namespace lighthouse::run

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::run::Decay>{"linear", "cosine",
                                                                       "stable"};
template <>
inline constexpr std::array lighthouse::kWords<lighthouse::run::Dtype>{"float32", "bfloat16"};

namespace lighthouse::run {

inline at::ScalarType scalar_type(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? at::kFloat : at::kBFloat16;
}

/// AdamW, and the schedule over all stages together, by steps or by seconds as the stages are:
/// linear warm-up, then decay to a share of the peak.
struct OptimizerRecipe {
  double lr = 2e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< of matrices; norms are not decayed
  double max_grad_norm = 1.0;
  int64_t warmup_steps = 100;
  Decay decay = Decay::kLinear;
  double decay_share = 0.2;
  double final_lr_share = 0.01;
  double z_loss = 0;               ///< times (log Z)^2 of the logits, in the gradient alone
  double skip_grad_norm = 0;       ///< a step with a larger gradient norm is skipped; 0: none is
  int64_t max_skipped_steps = 10;  ///< one more, and the run stops; also of losses not finite
};

/// Where it runs, and how often what is measured and saved.
struct RunRecipe {
  std::string out = "runs/run";  ///< the run's folder
  std::string device = "cpu";    ///< cpu, cuda or cuda:N
  Dtype dtype = Dtype::kFloat32;
  bool deterministic = false;     ///< the same bits on a GPU too, slower
  bool recompute_mlp = false;     ///< model::LanguageModel::set_recompute_mlp
  bool recompute_layers = false;  ///< model::LanguageModel::set_recompute_layers
  bool cuda_graphs = false;       ///< of the passes of a step (StepGraphs)
  int64_t seed = 0;
  int64_t eval_sequences = 4;    ///< held-out sequences of the stage's context, each evaluation
  int64_t eval_every_steps = 0;  ///< besides before and after each stage; 0: not
  int64_t checkpoint_every_steps = 100;
  int64_t keep_checkpoints = 2;  ///< at least 2: the newest may turn out damaged
  int64_t keep_every_steps = 0;  ///< checkpoints of its multiples are kept for good; 0: none
  int64_t log_every_steps = 1;   ///< lines in the metrics file
};

/// How several ranks share the work.
struct ParallelRecipe {
  int64_t context = 1;  ///< ranks that share each sequence; the sequences are shared out to others
  distributed::ExchangeChoice exchange = distributed::ExchangeChoice::kAuto;
  bool shard_optimizer = true;  ///< each rank updates its part of the weights (train::AdamW)
  double timeout = 600;         ///< seconds that a rank waits for another one
};

/// One stretch of a run. The paper's two stages are the common case; training short first and long
/// later is another. It lasts a number of steps or of seconds.
struct StageRecipe {
  std::string name;
  int64_t steps = 0;
  double seconds = 0;        ///< of training, without evaluations and checkpoints
  int64_t context = 0;       ///< tokens of a sequence
  int64_t batch = 1;         ///< sequences of a step
  int64_t micro_batch = 0;   ///< sequences at a time, gradients accumulated; 0: all of them
  int64_t warmup_steps = 0;  ///< of the stage, on top of the schedule of the whole run
  nn::Mode attention = nn::Mode::kDense;  ///< that is asked for (stage.h: computed_attention)
  Config config;  ///< of Lighthouse: settings but scale and local_shift, in the stage's table
  std::vector<int64_t> dense_layers{0, 1, -2, -1};
  double dense_share = 0;     ///< of the steps: dense, on pieces of dense_context tokens
  int64_t dense_context = 0;  ///< the step's tokens stay the same: it must divide context
  /// The most that a row may have where attention stays within documents: shapes follow from it,
  /// and not from what a row has. 0 where attention crosses.
  int64_t documents_per_row = 0;

  int64_t sequences_at_once() const { return micro_batch == 0 ? batch : micro_batch; }
  int64_t tokens_per_step() const { return batch * context; }
  bool by_seconds() const { return seconds > 0; }
  double length() const { return by_seconds() ? seconds : static_cast<double>(steps); }
  int64_t tokens() const { return steps * tokens_per_step(); }
};

/// One file describes a whole run.
struct Recipe {
  model::ModelConfig model;
  std::string
      init_from;  ///< folder of a model of Hugging Face's, whose weights the run begins with
  data::Source data;
  OptimizerRecipe optimizer;
  RunRecipe run;
  ParallelRecipe parallel;
  std::vector<StageRecipe> stages;

  /// Reads a TOML file: [model] (or [model] with preset = "models/tiny.toml", relative to the
  /// recipe, or with init_from, whose keys the others override), [data], [optimizer], [run],
  /// [parallel] and [[stage]]...
  ///
  /// A run's own recipe.toml is that of the run in its folder, wherever that was moved or copied:
  /// run.out is the folder, and nothing is read from init_from.
  ///
  /// @param overrides "key=value", as in a file: "optimizer.lr=1e-3", "stage.0.steps=10", or with
  ///        the stage's name, "stage.lighthouse.steps=10"
  /// @return a recipe that `validate` passes
  /// @throws std::invalid_argument for an unknown key (with the nearest known one), a wrong type or
  ///         a value out of range, each with file, line and column, or the override it is from
  static Recipe read(const std::filesystem::path& file,
                     const std::vector<std::string>& overrides = {});

  /// Reads what `to_toml` has written, without the checks of `validate`: what it lacks has its
  /// default. Throws std::invalid_argument as `read` does; `name` stands for the text.
  static Recipe parse(const std::string& toml, const std::string& name);

  /// Throws std::invalid_argument, naming the key, its value and what it must be, unless the whole
  /// run can be run: every stage's geometry and dense layers too.
  void validate() const;

  /// Whether all stages are by seconds; else all are by steps.
  bool by_seconds() const { return !stages.empty() && stages.front().by_seconds(); }
  /// Of all stages; 0 where they are by seconds.
  int64_t total_steps() const;
  /// Of all stages; 0 where they are by steps.
  double total_seconds() const;

  /// The whole recipe, every field, as TOML that `read` gives back the same.
  std::string to_toml() const;

  /// The fields that decide about the weights: without paths, since folders move (a fingerprint
  /// tells whether the text is the same), without what is measured and saved when, and without
  /// [parallel], since any number of ranks may resume a run.
  std::string deciding_toml() const;
};

/// The table of what will run: every field that has an effect, parameters, and for each stage its
/// tokens, warm-up, the rows S of the gathered sequence, pieces and the area of attention. Notes
/// say what will run otherwise than the recipe seems to say.
void print(std::ostream& out, const Recipe& recipe);

/// Every field there is: its key, its default and what it means, a line each.
std::string describe_fields();

}  // namespace lighthouse::run
