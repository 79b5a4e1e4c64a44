#include "lighthouse/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <variant>

#include "lighthouse/core/check.h"
#include "lighthouse/data/corpus.h"
#include "lighthouse/data/loader.h"
#include "lighthouse/eval/eval.h"
#include "lighthouse/io/file.h"
#include "lighthouse/model/base_model.h"
#include "lighthouse/model/hugging_face.h"
#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/checkpoint_space.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/recipe_changes.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/run/summary.h"
#include "lighthouse/run/tensorboard.h"
#include "lighthouse/train/checkpoint_writer.h"
#include "lighthouse/train/device.h"
#include "lighthouse/train/optimizer.h"
#include "lighthouse/train/progress.h"
#include "lighthouse/train/schedule.h"
#include "lighthouse/train/step.h"
#include "lighthouse/train/stop_signals.h"

namespace lighthouse::train {
namespace {

namespace fs = std::filesystem;

/// The recipe's model, with the weights that a new run begins with.
std::shared_ptr<model::LanguageModel> first_model(const run::Recipe& recipe, at::Device device,
                                                  bool resume) {
  auto model = run::new_model(recipe, device);
  if (recipe.init_from.empty() || resume) return model;
  const auto weights = model::read_weights(recipe.init_from, recipe.model.tie_word_embeddings);
  for (const auto& [name, tensor] : weights) {
    check_argument(tensor.isfinite().all().item<bool>(), "model.init_from is '", recipe.init_from,
                   "', whose tensor '", name, "' has values that are not finite");
  }
  run::restore(weights, model->weights(), "model.init_from");
  return model;
}

/// The run that a checkpoint is of.
run::RunFolder run_of(const fs::path& checkpoint) {
  return run::RunFolder(io::normal_path(checkpoint).parent_path().parent_path());
}

/// Reads the data, says what it is, and holds it against the model.
/// @param list what the run began with; empty: it begins
data::Corpus read_data(const run::Recipe& recipe, const data::FileList& list, Progress& progress) {
  const auto tell = [&](const char* what, uint64_t done, uint64_t all) {
    progress.prepare(what, done, all);
  };
  data::Corpus corpus = data::Corpus::read(recipe.data, list, tell);
  progress.say(corpus.describe());
  if (list.empty()) corpus.check_vocabulary(recipe.model.vocab_size, tell);
  return corpus;
}

/// Throws unless a run has begun in the folder, if only to make it.
void check_run(const run::RunFolder& folder) {
  check_argument(fs::is_directory(folder.path()) &&
                     (fs::is_directory(folder.checkpoints()) || fs::is_empty(folder.path())),
                 "there is no run to resume in '", folder.path().string(),
                 "'; run.out (--out) must be the folder of a run");
}

/// The checkpoint to resume from; an empty path if there is none yet.
fs::path starting_point(const run::RunFolder& folder, const Start& start) {
  if (!start.from) {
    const auto all = run::Checkpoints(folder.checkpoints()).list();
    return all.empty() ? fs::path() : all.back();
  }
  fs::path path = io::normal_path(*start.from);
  check_argument(fs::is_directory(path) && fs::equivalent(path.parent_path(), folder.checkpoints()),
                 "--resume-from is '", start.from->string(),
                 "'; it must be one of the folders in '", folder.checkpoints().string(), "'");
  return path;
}

/// Thrown where a signal asks the run to end.
struct Stopped {
  int signal;
};

void stop_if_asked() {
  if (const int signal = StopSignals::received(); signal != 0) throw Stopped{signal};
}

/// Keeps what an export will hand on of the model that the run begins with, since folders go.
void keep_base(const run::RunFolder& folder, const fs::path& from) {
  if (!fs::exists(from / "config.json") || fs::exists(folder.base())) return;
  const fs::path partial = folder.path() / ".partial-base";
  fs::remove_all(partial);
  model::copy_base(from, partial);
  io::rename_durably(partial, folder.base());
}

class Trainer {
 public:
  Trainer(const run::Recipe& recipe, const run::RunFolder& folder, const data::FileList& list,
          bool resume, std::ostream& out, bool terminal, const Clock& clock)
      : recipe_(recipe),
        folder_(folder),
        out_(out),
        clock_(clock),
        progress_(out, terminal, recipe.stages),
        corpus_(read_data(recipe, list, progress_)),
        token_frequency_loss_(eval::token_frequency_loss(corpus_.train(), corpus_.held_out(),
                                                         recipe.model.vocab_size)),
        loader_(corpus_.train(), corpus_.document_ends(), recipe.run.seed, recipe.model.vocab_size,
                static_cast<uint64_t>(recipe.data.shuffle_block)),
        device_(find_device(recipe.run.device, "run.device")),
        model_(first_model(recipe, device_, resume)),
        optimizer_(*model_, recipe.optimizer, run::scalar_type(recipe.run.dtype)),
        checkpoints_(folder.checkpoints()),
        writer_(checkpoints_, recipe.run.keep_checkpoints, recipe.run.keep_every_steps) {
    use_deterministic_algorithms(recipe.run.deterministic);
    for (const run::StageRecipe& stage : recipe.stages) {
      held_out_[stage.context] = data::held_out_batches(
          corpus_.held_out(), recipe.run.eval_sequences, stage.context, recipe.model.vocab_size);
    }
  }

  const data::FileList& files() const { return corpus_.files(); }

  void resume(const fs::path& path, bool force);
  void branch(const fs::path& path, const run::Checkpoint& checkpoint);
  int run();

 private:
  /// A stage, and where in the run it is. Stages by seconds end at fixed seconds of the run, so
  /// that what the last step of one takes too long is the next one's loss, and not the run's.
  struct Stage {
    const run::StageRecipe& recipe;
    int64_t first;  ///< steps of the run before it
    double begin;   ///< seconds of the run before it, where it is by seconds
  };

  /// Where what is measured goes.
  struct Metrics {
    run::MetricsFile file;
    run::TensorBoard tensorboard;

    void write(const run::SkipMetrics& skip) { file.write(skip); }
    void write(const auto& metrics) {
      file.write(metrics);
      tensorboard.write(metrics);
    }
  };

  void run_stages();
  void run(const Stage& stage, Metrics& metrics);
  bool ended(const Stage& stage) const;
  double learning_rate(const Stage& stage) const;
  void restore_from(const run::Checkpoint& checkpoint);
  void use(const run::StageRecipe& stage, nn::Mode attention);
  run::EvalMetrics evaluate(const Stage& stage, const char* when);
  std::variant<run::StepMetrics, run::SkipMetrics> train_step(const Stage& stage,
                                                              StepGraphs* graphs);
  void save();
  void finish_saving();
  void report(const std::string& failure);
  int64_t tokens() const { return static_cast<int64_t>(loader_.position()); }

  const run::Recipe& recipe_;
  const run::RunFolder& folder_;
  std::ostream& out_;
  const Clock& clock_;
  Progress progress_;
  data::Corpus corpus_;
  double token_frequency_loss_;  ///< of all that a summary needs, what reads the data
  data::Loader loader_;
  at::Device device_;
  std::shared_ptr<model::LanguageModel> model_;
  AdamW optimizer_;
  run::Checkpoints checkpoints_;
  CheckpointWriter writer_;
  StopSignals signals_;
  std::map<int64_t, std::vector<data::Batch>> held_out_;  ///< by context
  const run::StageRecipe* attention_of_ = nullptr;        ///< of the model now; none: dense
  std::vector<int64_t> stage_starts_;                     ///< Checkpoint::stage_starts
  int64_t step_ = 0;                                      ///< steps done
  int64_t saved_ = -1;                                    ///< the newest checkpoint's
  int64_t skipped_ = 0;                                   ///< of them
  double seconds_ = 0;
};

void Trainer::resume(const fs::path& path, bool force) {
  const run::Checkpoint checkpoint = run::read_checkpoint(path);
  const std::vector<std::string> changed = run::recipe_changes(recipe_, checkpoint);
  check_argument(changed.empty() || force,
                 "the recipe differs from that of the checkpoint: ", run::joined(changed),
                 "; resume with the recipe.toml in the run's folder, or accept the changes "
                 "(--force)");
  check_reaches(recipe_, checkpoint);
  restore_from(checkpoint);
  saved_ = step_;
  if (!changed.empty()) {
    const nlohmann::ordered_json record{{"step", step_}, {"changed", changed}};
    io::Appender(folder_.forced()).append(record.dump() + '\n');
    progress_.say("resumed with a changed recipe (--force): " + run::joined(changed));
  }
  checkpoints_.remove_after(step_);
  progress_.say(message("resumed after step ", step_));
  if (checkpoint.threads != at::get_num_threads()) {
    progress_.say(message("the checkpoint was made with ", checkpoint.threads,
                          " threads, this run has ", at::get_num_threads(),
                          ": results will differ in the last bits"));
  }
}

/// The other run's metrics up to there are this one's too.
void Trainer::branch(const fs::path& path, const run::Checkpoint& checkpoint) {
  const std::vector<std::string> changed = run::branch_changes(recipe_, checkpoint);
  restore_from(checkpoint);
  const run::RunFolder other = run_of(path);
  if (fs::exists(other.metrics())) {
    io::write_atomically(folder_.metrics(), io::read_file(other.metrics()));
    const run::MetricsFile up_to_here(folder_.metrics(), step_);
    run::TensorBoard(folder_.tensorboard(), 0).write(run::read_metrics(folder_.metrics()));
  }
  const nlohmann::ordered_json record{
      {"from", io::normal_path(path).string()}, {"step", step_}, {"changed", changed}};
  io::write_atomically(folder_.branch(), record.dump(2) + '\n');
  save();
  finish_saving();
  progress_.say(message("branched after step ", step_, ", with ", changed.size(), " changes"));
}

void Trainer::restore_from(const run::Checkpoint& checkpoint) {
  check_argument(corpus_.fingerprint() == checkpoint.corpus,
                 "data.path does not lead to the data that the run began with: it has the "
                 "fingerprint ",
                 corpus_.fingerprint(), ", not ", checkpoint.corpus);
  run::restore(checkpoint.model, optimizer_.weights(), "the checkpoint");
  optimizer_.publish_weights();
  run::restore(checkpoint.optimizer, optimizer_.state(), "the checkpoint");
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  generator.set_state(checkpoint.random);
  loader_.seek(checkpoint.position);
  step_ = checkpoint.step;
  skipped_ = checkpoint.skipped;
  seconds_ = checkpoint.seconds;
  // The recipe's steps may have been changed since; where stages are by seconds, only the run
  // knows.
  stage_starts_ =
      recipe_.by_seconds() ? checkpoint.stage_starts : stage_starts(recipe_, checkpoint.step);
}

int Trainer::run() {
  try {
    run_stages();
    return 0;
  } catch (const Stopped& stopped) {
    return stopped.signal;
  } catch (...) {
    report(writer_.wait());  // or it would go unsaid
    throw;
  }
}

void Trainer::run_stages() {
  checkpoints_.remove_partial();
  fs::remove(folder_.summary());
  Metrics metrics{{folder_.metrics(), step_}, {folder_.tensorboard(), step_}};
  double begin = 0;
  try {
    for (size_t i = 0; i < recipe_.stages.size(); ++i) {
      const bool is_past = i + 1 < stage_starts_.size();
      if (i == stage_starts_.size()) stage_starts_.push_back(step_);
      if (!is_past) run({recipe_.stages[i], stage_starts_[i], begin}, metrics);
      begin += recipe_.stages[i].seconds;
    }
  } catch (const Stopped&) {
    metrics.file.sync();
    if (saved_ != step_) save();
    finish_saving();
    throw;
  }
  finish_saving();
  const run::MetricsHistory history = run::read_metrics(folder_.metrics());
  if (skipped_ == step_) {
    throw std::runtime_error(message(
        "all ", skipped_, " steps were skipped, the last because ", history.skips.back().why,
        ": the model is as it was at the start, and there is no summary"));
  }
  std::vector<int64_t> bounds = stage_starts_;
  bounds.push_back(step_);
  const run::Summary summary = run::summarize(recipe_, bounds, history, token_frequency_loss_);
  if (!std::isfinite(summary.final_loss())) {
    throw std::runtime_error(
        "the held-out loss at the end is not a finite number: the model is of no use, and there is "
        "no summary; a lower optimizer.lr or a longer optimizer.warmup_steps may help");
  }
  io::write_atomically(folder_.summary(), run::to_json(summary));
  run::print(out_, summary);
}

/// A checkpoint is made right after its step, and evaluations come before the next one, so that a
/// run that is resumed from a checkpoint repeats the evaluations after its step. Evaluations change
/// nothing, and may be cut short.
void Trainer::run(const Stage& stage, Metrics& metrics) {
  const run::RunRecipe& every = recipe_.run;
  const auto divides = [](int64_t period, int64_t step) {
    return period > 0 && step % period == 0;
  };
  const auto evaluate_now = [&](const char* when) {
    const run::EvalMetrics eval = evaluate(stage, when);
    metrics.write(eval);
    progress_.say(message(when, " stage ", eval.stage, ": held-out loss ", eval.dense_loss,
                          " dense, ", eval.trained_loss, " as trained"));
  };
  StepGraphs graphs(*model_);
  forget_peak_memory(device_);
  while (true) {
    if (step_ == stage.first) evaluate_now("before");
    if (ended(stage)) break;
    if (step_ > stage.first && divides(every.eval_every_steps, step_)) evaluate_now("during");

    const auto step = train_step(stage, every.cuda_graphs ? &graphs : nullptr);
    const bool last = ended(stage), edge = step_ == stage.first + 1 || last;
    const auto* skip = std::get_if<run::SkipMetrics>(&step);
    if (skip != nullptr) {
      metrics.write(*skip);
      progress_.say(message("step ", skip->step, " is skipped: ", skip->why));
    } else {
      const auto& trained = std::get<run::StepMetrics>(step);
      if (edge || divides(every.log_every_steps, step_)) metrics.write(trained);
      progress_.step(trained, edge);
    }

    // Where steps are skipped the weights may be bad: good checkpoints do not make room for them.
    const bool due = skip == nullptr && divides(every.checkpoint_every_steps, step_);
    if (last || due) {
      metrics.file.sync();
      save();
    } else {
      report(writer_.poll());
    }
    stop_if_asked();
  }
  evaluate_now("after");
}

/// A stage has one step at least, whatever the seconds before it took.
bool Trainer::ended(const Stage& stage) const {
  if (!stage.recipe.by_seconds()) return step_ == stage.first + stage.recipe.steps;
  return step_ > stage.first && seconds_ >= stage.begin + stage.recipe.seconds;
}

/// Of the next step.
double Trainer::learning_rate(const Stage& stage) const {
  const run::OptimizerRecipe& optimizer = recipe_.optimizer;
  const double of_run =
      recipe_.by_seconds()
          ? train::learning_rate(optimizer, step_, seconds_, recipe_.total_seconds())
          : train::learning_rate(optimizer, step_, recipe_.total_steps());
  return of_run * warmup_share(stage.recipe, step_ - stage.first, seconds_ - stage.begin);
}

void Trainer::use(const run::StageRecipe& stage, nn::Mode attention) {
  const run::StageRecipe* wanted = attention == nn::Mode::kDense ? nullptr : &stage;
  if (wanted == attention_of_) return;
  model_->set_attention(wanted != nullptr ? run::attention_plan(stage) : model::AttentionPlan());
  attention_of_ = wanted;
}

run::EvalMetrics Trainer::evaluate(const Stage& stage, const char* when) {
  const nn::Mode attention = run::computed_attention(stage.recipe);
  use(stage.recipe, attention);
  const auto& batches = held_out_.at(stage.recipe.context);
  const auto loss = [&](bool as_trained) {
    return eval::held_out_loss(*model_, batches, as_trained, stop_if_asked).all.mean;
  };
  const double dense = loss(/*as_trained=*/false);
  const double trained = attention == nn::Mode::kDense ? dense : loss(/*as_trained=*/true);
  return {step_, stage.recipe.name, when, dense, trained, tokens(), seconds_};
}

std::variant<run::StepMetrics, run::SkipMetrics> Trainer::train_step(const Stage& stage,
                                                                     StepGraphs* graphs) {
  const double start = clock_();
  const run::StepPlan plan = run::step_plan(stage.recipe, step_ - stage.first);
  const double lr = learning_rate(stage);
  const data::Batch batch = loader_.next(plan.sequences, plan.context);
  use(stage.recipe, plan.attention);
  const StepResult done =
      train::train_step(*model_, optimizer_, batch, plan, recipe_.optimizer, lr, graphs);
  ++step_;
  const double seconds = clock_() - start;
  seconds_ += seconds;
  if (!done.skipped) {
    return run::StepMetrics{step_,
                            stage.recipe.name,
                            std::string(to_string(plan.attention)),
                            done.loss,
                            lr,
                            done.grad_norm,
                            tokens(),
                            seconds_,
                            static_cast<double>(batch.tokens.numel()) / seconds,
                            memory_in_use(device_)};
  }
  const std::string why =
      message("its loss is ", done.loss, " and its gradient norm ", done.grad_norm);
  if (++skipped_ > recipe_.optimizer.max_skipped_steps) {
    throw std::runtime_error(
        message("step ", step_, " would be skipped like ", skipped_ - 1, " before it: ", why,
                "; optimizer.max_skipped_steps is ", recipe_.optimizer.max_skipped_steps,
                ". The newest checkpoint is from before it. A lower optimizer.lr or a longer "
                "optimizer.warmup_steps may help"));
  }
  return run::SkipMetrics{step_, stage.recipe.name, why};
}

void Trainer::report(const std::string& failure) {
  if (!failure.empty()) progress_.say("WARNING: " + failure);
}

/// Without the last checkpoint a run has not ended well.
void Trainer::finish_saving() {
  const std::string failure = writer_.wait();
  if (!failure.empty()) throw std::runtime_error(failure);
}

void Trainer::save() {
  report(writer_.wait());
  saved_ = step_;
  run::Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.position = loader_.position();
  checkpoint.seconds = seconds_;
  checkpoint.stage_starts = stage_starts_;
  std::erase_if(checkpoint.stage_starts, [&](int64_t start) { return start >= step_; });
  checkpoint.threads = at::get_num_threads();
  checkpoint.corpus = corpus_.fingerprint();
  checkpoint.recipe = recipe_;
  checkpoint.random = at::detail::getDefaultCPUGenerator().get_state();
  checkpoint.skipped = skipped_;
  checkpoint.model = optimizer_.weights();
  checkpoint.optimizer = optimizer_.state();
  writer_.begin(checkpoint);
}

}  // namespace

double steady_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

int train(const run::Recipe& recipe, const Start& start, std::ostream& out, bool terminal,
          const Clock& clock) {
  recipe.validate();
  const run::RunFolder folder(recipe.run.out);
  const bool resumes = start.resume || start.from;
  const auto check_new = [&](bool is_new) {
    check_argument(is_new, "the run's folder '", folder.path().string(),
                   "' already exists; resume the run (--resume), or choose another folder (--out)");
  };
  if (!resumes) check_new(!fs::exists(folder.path()) || fs::is_empty(folder.path()));
  std::optional<io::Lock> lock;  // outlives the trainer, whose end waits for the checkpoint
  const auto take_folder = [&] {
    fs::create_directories(folder.checkpoints());
    lock.emplace(folder.lock(), message("the run's folder '", folder.path().string(), "'"));
  };
  fs::path from;
  if (resumes) {
    check_run(folder);
    take_folder();
    from = starting_point(folder, start);
  }
  if (const std::string warning = run::check_checkpoint_space(recipe, folder); !warning.empty()) {
    out << "WARNING: " << warning << '\n';
  }
  std::optional<run::Checkpoint> begin;
  if (start.branch) {
    begin = run::read_checkpoint(*start.branch);
    run::branch_changes(recipe, *begin);  // what cannot be branched from leaves no folder behind
  }
  const run::RunFolder first = start.branch ? run_of(*start.branch) : folder;
  Trainer trainer(recipe, folder, data::read_file_list(first.data()),
                  /*resume=*/!from.empty() || begin, out, terminal, clock);

  if (!resumes) {
    take_folder();
    check_new(!folder.exists());  // another process may have begun there meanwhile
  }
  if (!from.empty()) {
    trainer.resume(from, start.force);
  } else if (resumes) {
    check_argument(!fs::exists(folder.branch()), "the run in '", folder.path().string(),
                   "' was to branch from another run and has no checkpoint; remove its folder, and "
                   "branch again");
    out << "there is no checkpoint yet: the run starts from the first step\n";
  }
  if (begin) {
    keep_base(folder, fs::exists(first.base()) ? first.base() : fs::path(recipe.init_from));
    trainer.branch(*start.branch, *begin);
  } else if (from.empty()) {
    keep_base(folder, recipe.init_from);
  }
  begin.reset();  // a whole model and its optimizer
  if (!fs::exists(folder.data())) data::write_file_list(folder.data(), trainer.files());
  io::write_atomically(folder.recipe(), recipe.to_toml());
  return trainer.run();
}

}  // namespace lighthouse::train
