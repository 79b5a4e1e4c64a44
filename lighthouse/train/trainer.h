#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "lighthouse/data/corpus.h"
#include "lighthouse/data/loader.h"
#include "lighthouse/distributed/world.h"
#include "lighthouse/model/language_model.h"
#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/recipe.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/run/tensorboard.h"
#include "lighthouse/train/checkpoint_writer.h"
#include "lighthouse/train/optimizer.h"
#include "lighthouse/train/progress.h"
#include "lighthouse/train/step_graphs.h"
#include "lighthouse/train/stop_signals.h"

namespace lighthouse::train {

/// Seconds since some moment.
using Clock = std::function<double()>;
double steady_seconds();

/// Calls `act` on the first rank alone. Where it throws there, every rank throws.
template <class Act>
void on_first_rank(const distributed::World& world, const Act& act) {
  std::exception_ptr error;
  try {
    if (world.is_first()) act();
  } catch (...) {
    error = std::current_exception();
  }
  bool failed = false;
  try {
    failed = world.any(error != nullptr);
  } catch (const distributed::PeerError&) {
    if (!error) throw;  // its own error says more than that another rank is gone, too
  }
  if (error) std::rethrow_exception(error);
  if (failed) throw distributed::PeerError("the run ended by an error of rank 0, which says more");
}

/// A run under way: its data, model, optimizer and place in the recipe. `train` decides where it
/// begins and whose folder it has. Every rank makes the same calls; the first alone writes.
class Trainer {
 public:
  /// Reads the data and makes the model, at the first step.
  /// @param list the files that the run began with; empty where it begins now
  /// @param is_new whether the model begins with the weights of model.init_from
  /// @param out,terminal,clock,world as `train` takes them; references outlive the trainer
  Trainer(const run::Recipe& recipe, const run::RunFolder& folder, const data::FileList& list,
          bool is_new, std::ostream& out, bool terminal, const Clock& clock,
          const distributed::World& world);

  const data::FileList& files() const { return corpus_.files(); }
  uint64_t fingerprint() const { return corpus_.fingerprint(); }

  /// Holds all rows that the run is to train on from there to documents_per_row, where attention
  /// stays within documents. Of text it reads nothing, of token files all that they hold. A run by
  /// seconds is not held: nobody knows which rows it will come to.
  /// @param position,step of the checkpoint to begin with, or 0
  /// @throws std::invalid_argument naming the stage, the first such step, and the number needed
  void check_documents(uint64_t position, int64_t step);

  /// Goes to a checkpoint of this run, and removes later ones.
  /// @param force whether the recipe may differ from that of the checkpoint
  void resume(const std::filesystem::path& path, bool force);

  /// Goes to a checkpoint of another run, whose metrics up to there become those of this one.
  /// @param path of the checkpoint
  void branch(const run::RunFolder& other, const std::filesystem::path& path,
              const run::Checkpoint& checkpoint);

  /// Trains all that is left of the recipe. Returns the signal that stopped it, or 0.
  int complete();

 private:
  /// A stage, and where in the run it is. Stages by seconds end at fixed seconds of the run, so
  /// that what the last step of one takes too long is the next one's loss, and not the run's.
  struct Stage {
    const run::StageRecipe& recipe;
    int64_t first;  ///< steps of the run before the stage
    double begin;   ///< seconds of the run before a stage by seconds
  };

  /// The files for what is measured.
  struct Metrics {
    Metrics(const run::RunFolder& folder, int64_t steps_done)
        : file(folder.metrics(), steps_done), tensorboard(folder.tensorboard(), steps_done) {}
    run::MetricsFile file;
    run::TensorBoard tensorboard;
  };

  void train_stages();
  void train_stage(const Stage& stage);
  std::variant<run::StepMetrics, run::SkipMetrics> next_step(const Stage& stage,
                                                             StepGraphs* graphs);
  bool ended(const Stage& stage) const;
  double learning_rate(const Stage& stage) const;
  void use_attention(const run::StageRecipe& stage, nn::Mode attention);
  run::EvalMetrics evaluate(const Stage& stage, const char* when);
  void summarize();
  void record(const run::SkipMetrics& skip);
  void record(const auto& metrics);

  void restore_from(const run::Checkpoint& checkpoint);
  void save();
  void finish_saving();
  void wait_for_writer() const;
  void report(const std::string& failure);
  void stop_if_asked() const;
  int64_t tokens() const { return static_cast<int64_t>(loader_.position()); }

  const run::Recipe& recipe_;
  const run::RunFolder& folder_;
  std::ostream& out_;
  const Clock& clock_;
  distributed::World world_;
  distributed::Mesh mesh_;
  Progress progress_;
  data::Corpus corpus_;
  double token_frequency_loss_;  ///< a figure of the summary; it needs the data
  data::Loader loader_;
  at::Device device_;
  std::shared_ptr<model::LanguageModel> model_;
  AdamW optimizer_;
  run::Checkpoints checkpoints_;
  CheckpointWriter writer_;
  StopSignals signals_;
  /// Batches, by context and documents_per_row.
  std::map<std::pair<int64_t, int64_t>, std::vector<data::Batch>> held_out_;
  /// The stage, and the mode, that the model's attention is of.
  std::optional<std::pair<const run::StageRecipe*, nn::Mode>> attention_is_of_;
  std::optional<Metrics> metrics_;     ///< on the first rank
  std::vector<int64_t> stage_starts_;  ///< Checkpoint::stage_starts
  int64_t step_ = 0;                   ///< steps done
  int64_t saved_ = -1;                 ///< the step of the newest checkpoint
  int64_t skipped_ = 0;                ///< steps that were skipped
  double seconds_ = 0;                 ///< training time
};

}  // namespace lighthouse::train
