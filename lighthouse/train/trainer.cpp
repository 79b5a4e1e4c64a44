#include "lighthouse/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/eval/eval.h"
#include "lighthouse/io/file.h"
#include "lighthouse/model/base_model.h"
#include "lighthouse/model/hugging_face.h"
#include "lighthouse/run/new_model.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/recipe_changes.h"
#include "lighthouse/run/recipe_fields.h"
#include "lighthouse/run/stage.h"
#include "lighthouse/run/summary.h"
#include "lighthouse/train/device.h"
#include "lighthouse/train/schedule.h"
#include "lighthouse/train/step.h"

namespace lighthouse::train {
namespace {

namespace fs = std::filesystem;

/// The recipe's model, with the weights that a new run begins with.
std::shared_ptr<model::LanguageModel> first_model(const run::Recipe& recipe, at::Device device,
                                                  bool is_new) {
  auto model = run::new_model(recipe, device);
  if (!is_new || recipe.init_from.empty()) return model;
  const auto weights = model::read_weights(recipe.init_from, recipe.model.tie_word_embeddings);
  for (const auto& [name, tensor] : weights) {
    check_argument(tensor.isfinite().all().item<bool>(), "model.init_from is '", recipe.init_from,
                   "', whose tensor '", name, "' has values that are not finite");
  }
  run::restore(weights, model->weights(), "model.init_from");
  return model;
}

/// Refuses text, whose bytes are taken for tokens, for a model that has a tokenizer of others.
void check_tokens(const run::Recipe& recipe, const data::Corpus& corpus) {
  constexpr int64_t kBytes = 256;
  const std::filesystem::path base = recipe.init_from;
  if (!corpus.train().is_text() || base.empty() || recipe.model.vocab_size == kBytes ||
      !model::has_tokenizer(base)) {
    return;
  }
  throw std::invalid_argument(
      message("data.path is text, whose bytes are the tokens, and the model of model.init_from, '",
              base.string(), "', has a tokenizer with a vocabulary of ", recipe.model.vocab_size,
              "; data.path must be a token file, which this makes of text:\n"
              "  python -m lighthouse_attention.tokens ",
              (base / "tokenizer.json").string(), " TEXT --end TOKEN --out FILE.bin"));
}

/// Reads the data, says what it is, and holds it against the model.
/// @param list what the run began with; empty: it begins
data::Corpus read_data(const run::Recipe& recipe, const data::FileList& list, Progress& progress) {
  const auto tell = [&](const char* what, uint64_t done, uint64_t all) {
    progress.prepare(what, done, all);
  };
  data::Corpus corpus = data::Corpus::read(recipe.data, list, tell);
  progress.say(corpus.describe());
  if (list.empty()) {
    check_tokens(recipe, corpus);
    corpus.check_vocabulary(recipe.model.vocab_size, tell);
  }
  return corpus;
}

/// The recipe's device, or what this rank has of it.
at::Device device_of(const run::Recipe& recipe, const distributed::World& world) {
  return find_device(world.gpu() ? world.gpu()->str() : recipe.run.device, "run.device");
}

/// Thrown where a signal asks the run to end.
struct Stopped {
  int signal;
};

}  // namespace

double steady_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

Trainer::Trainer(const run::Recipe& recipe, const run::RunFolder& folder,
                 const data::FileList& list, bool is_new, std::ostream& out, bool terminal,
                 const Clock& clock, const distributed::World& world)
    : recipe_(recipe),
      folder_(folder),
      out_(out),
      clock_(clock),
      world_(world),
      mesh_(distributed::Mesh::of(world, recipe.parallel.context)),
      progress_(out, terminal, recipe.stages),
      corpus_(read_data(recipe, list, progress_)),
      token_frequency_loss_(
          eval::token_frequency_loss(corpus_.train(), corpus_.held_out(), recipe.model.vocab_size)),
      loader_(corpus_.train(), corpus_.train_ends(), recipe.run.seed, recipe.model.vocab_size,
              static_cast<uint64_t>(recipe.data.shuffle_block)),
      device_(device_of(recipe, world)),
      model_(first_model(recipe, device_, is_new)),
      optimizer_(*model_, recipe.optimizer, run::scalar_type(recipe.run.dtype), world,
                 recipe.parallel.shard_optimizer),
      checkpoints_(folder.checkpoints()),
      writer_(checkpoints_, recipe.run.keep_checkpoints, recipe.run.keep_every_steps) {
  use_deterministic_algorithms(recipe.run.deterministic);
  for (const run::StageRecipe& stage : recipe.stages) {
    run::check_part("stage '" + stage.name + "'", [&] {
      held_out_[{stage.context, stage.documents_per_row}] = data::held_out_batches(
          corpus_.held_out(), recipe.run.eval_sequences, stage.context, recipe.model.vocab_size,
          corpus_.held_out_ends(), {stage.documents_per_row, recipe.data.positions});
    });
  }
}

void Trainer::check_documents(uint64_t position, int64_t step) {
  if (recipe_.data.attention != data::Attention::kWithin || recipe_.by_seconds()) return;
  uint64_t all = 0;
  for (const run::StageRecipe& stage : recipe_.stages) {
    all += static_cast<uint64_t>(stage.tokens());
  }
  const auto tell = [&](const char* what, uint64_t done, uint64_t of) {
    progress_.prepare(what, done, of, "billion tokens");
  };
  data::Ticker ticker("counting the documents of rows", all, tell);
  int64_t first = 0;
  for (const run::StageRecipe& stage : recipe_.stages) {
    int64_t most = 0, too_many = 0;
    for (int64_t done = std::max<int64_t>(0, step - first); done < stage.steps; ++done) {
      const run::StepPlan plan = run::step_plan(stage, done);
      most = std::max(most, loader_.most_documents(position, plan.sequences, plan.context));
      if (too_many == 0 && most > stage.documents_per_row) too_many = first + done + 1;
      position += static_cast<uint64_t>(stage.tokens_per_step());
      ticker.add(static_cast<uint64_t>(stage.tokens_per_step()));
    }
    run::check_part("stage '" + stage.name + "'", [&] {
      check_argument(too_many == 0, "documents_per_row is ", stage.documents_per_row,
                     ", and a row of step ", too_many,
                     " has more documents; the stage's rows have up to ", most,
                     ", so it must be at least ", most);
    });
    first += stage.steps;
  }
}

void Trainer::resume(const fs::path& path, bool force) {
  const run::Checkpoint checkpoint = run::read_checkpoint(path);
  const std::vector<std::string> changed = run::recipe_changes(recipe_, checkpoint);
  check_argument(changed.empty() || force,
                 "the recipe differs from that of the checkpoint: ", run::joined(changed),
                 "; resume with the recipe.toml in the run's folder, or accept the changes "
                 "(--force)");
  check_reaches(recipe_, checkpoint);
  // Else they were counted when the run began; of text that takes no time.
  if (!changed.empty() || corpus_.train().is_text()) {
    check_documents(checkpoint.position, checkpoint.step);
  }
  restore_from(checkpoint);
  saved_ = step_;
  on_first_rank(world_, [&] {
    if (!changed.empty()) {
      const nlohmann::ordered_json forced{{"step", step_}, {"changed", changed}};
      io::Appender(folder_.forced()).append(forced.dump() + '\n');
      progress_.say("resumed with a changed recipe (--force): " + run::joined(changed));
    }
    checkpoints_.remove_after(step_);
  });
  progress_.say(message("resumed after step ", step_));
  if (checkpoint.threads != at::get_num_threads()) {
    progress_.say(message("the checkpoint was made with ", checkpoint.threads,
                          " threads, this run has ", at::get_num_threads(),
                          ": results will differ in the last bits"));
  }
  if (checkpoint.ranks != world_.size()) {
    progress_.say(message("the checkpoint was made by ", checkpoint.ranks, " ranks, this run has ",
                          world_.size(), ": results will differ in the last bits, and by what ",
                          "chunks select where the exchange is gather or ring"));
  }
}

void Trainer::branch(const run::RunFolder& other, const fs::path& path,
                     const run::Checkpoint& checkpoint) {
  const std::vector<std::string> changed = run::branch_changes(recipe_, checkpoint);
  restore_from(checkpoint);
  on_first_rank(world_, [&] {
    if (fs::exists(other.metrics())) {
      io::write_atomically(folder_.metrics(), io::read_file(other.metrics()));
      const run::MetricsFile up_to_here(folder_.metrics(), step_);
      run::TensorBoard(folder_.tensorboard(), 0).write(run::read_metrics(folder_.metrics()));
    }
    const nlohmann::ordered_json branched{
        {"from", io::normal_path(path).string()}, {"step", step_}, {"changed", changed}};
    io::write_atomically(folder_.branch(), branched.dump(2) + '\n');
  });
  save();
  finish_saving();
  progress_.say(message("branched after step ", step_, ", with ", changed.size(), " changes"));
}

void Trainer::restore_from(const run::Checkpoint& checkpoint) {
  check_argument(corpus_.fingerprint() == checkpoint.corpus,
                 "data.path does not lead to the data that the run began with: it has the "
                 "fingerprint ",
                 corpus_.fingerprint(), ", not ", checkpoint.corpus);
  optimizer_.restore(checkpoint.model, checkpoint.optimizer, "the checkpoint");
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

int Trainer::complete() {
  int signal = 0;
  try {
    train_stages();
  } catch (const Stopped& stopped) {
    signal = stopped.signal;
  } catch (...) {
    report(writer_.wait());  // or it would go unsaid
    throw;
  }
  mesh_.close(world_);
  return signal;
}

void Trainer::train_stages() {
  on_first_rank(world_, [&] {
    checkpoints_.remove_partial();
    fs::remove(folder_.summary());
    metrics_.emplace(folder_, step_);
  });
  double begin = 0;
  try {
    for (size_t i = 0; i < recipe_.stages.size(); ++i) {
      const bool is_past = i + 1 < stage_starts_.size();
      if (i == stage_starts_.size()) stage_starts_.push_back(step_);
      if (!is_past) {
        train_stage({.recipe = recipe_.stages[i], .first = stage_starts_[i], .begin = begin});
      }
      begin += recipe_.stages[i].seconds;
    }
  } catch (const Stopped&) {
    if (metrics_) metrics_->file.sync();
    if (saved_ != step_) save();
    finish_saving();
    throw;
  }
  finish_saving();
  on_first_rank(world_, [&] { summarize(); });
}

void Trainer::summarize() {
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
void Trainer::train_stage(const Stage& stage) {
  const run::RunRecipe& every = recipe_.run;
  const auto divides = [](int64_t period, int64_t step) {
    return period > 0 && step % period == 0;
  };
  const auto evaluate_now = [&](const char* when) {
    const run::EvalMetrics eval = evaluate(stage, when);
    record(eval);
    progress_.say(message(when, " stage ", eval.stage, ": held-out loss ", eval.dense_loss,
                          " dense, ", eval.trained_loss, " as trained"));
  };
  StepGraphs graphs(*model_);
  forget_peak_memory(device_);
  while (true) {
    if (step_ == stage.first) evaluate_now("before");
    if (ended(stage)) break;
    if (step_ > stage.first && divides(every.eval_every_steps, step_)) evaluate_now("during");

    const auto step = next_step(stage, every.cuda_graphs ? &graphs : nullptr);
    const bool last = ended(stage), edge = step_ == stage.first + 1 || last;
    const auto* skip = std::get_if<run::SkipMetrics>(&step);
    if (skip != nullptr) {
      record(*skip);
      progress_.say(message("step ", skip->step, " is skipped: ", skip->why));
    } else {
      const auto& trained = std::get<run::StepMetrics>(step);
      if (edge || divides(every.log_every_steps, step_)) record(trained);
      progress_.step(trained, edge);
    }

    // Where steps are skipped the weights may be bad: good checkpoints do not make room for them.
    const bool due = skip == nullptr && divides(every.checkpoint_every_steps, step_);
    if (last || due) {
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

void Trainer::use_attention(const run::StageRecipe& stage, nn::Mode attention) {
  const auto wanted = std::pair(&stage, attention);
  if (wanted == attention_is_of_) return;
  model::AttentionPlan plan =
      attention == nn::Mode::kDense ? model::AttentionPlan() : run::attention_plan(stage);
  plan.context = run::context_of(recipe_, stage, mesh_.context);
  model_->set_attention(plan);
  attention_is_of_ = wanted;
}

run::EvalMetrics Trainer::evaluate(const Stage& stage, const char* when) {
  const nn::Mode attention = run::computed_attention(stage.recipe);
  use_attention(stage.recipe, attention);
  const auto& batches = held_out_.at({stage.recipe.context, stage.recipe.documents_per_row});
  const auto stop = [this] { stop_if_asked(); };
  const auto loss = [&](bool as_trained) {
    return eval::held_out_loss(*model_, batches, as_trained, stop, mesh_).all.mean;
  };
  const double dense = loss(/*as_trained=*/false);
  const double trained = attention == nn::Mode::kDense ? dense : loss(/*as_trained=*/true);
  return {.step = step_,
          .stage = stage.recipe.name,
          .when = when,
          .dense_loss = dense,
          .trained_loss = trained,
          .tokens = tokens(),
          .seconds = seconds_};
}

std::variant<run::StepMetrics, run::SkipMetrics> Trainer::next_step(const Stage& stage,
                                                                    StepGraphs* graphs) {
  const double start = clock_();
  const run::StepPlan plan = run::step_plan(stage.recipe, step_ - stage.first);
  const double lr = learning_rate(stage);
  data::Batch batch;
  run::check_part(message("stage '", stage.recipe.name, "', step ", step_ + 1), [&] {
    batch = loader_.next(plan.sequences, plan.context, {plan.documents, recipe_.data.positions});
  });
  use_attention(stage.recipe, plan.attention);
  const StepResult done =
      train_step(*model_, optimizer_, mesh_.data, batch, plan, recipe_.optimizer, lr, graphs);
  ++step_;
  const double seconds = world_.max(clock_() - start);  // all end a stage by seconds together
  seconds_ += seconds;
  if (!done.skipped) {
    return run::StepMetrics{
        .step = step_,
        .stage = stage.recipe.name,
        .attention = std::string(to_string(plan.attention)),
        .loss = done.loss,
        .lr = lr,
        .grad_norm = done.grad_norm,
        .tokens = tokens(),
        .seconds = seconds_,
        .tokens_per_second = static_cast<double>(batch.tokens.numel()) / seconds,
        .memory_bytes = world_.max(memory_in_use(device_))};
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
  return run::SkipMetrics{.step = step_, .stage = stage.recipe.name, .why = why};
}

void Trainer::report(const std::string& failure) {
  if (!failure.empty()) progress_.say("WARNING: " + failure);
}

/// The other ranks wait in many short exchanges, since one that is long would time out.
void Trainer::wait_for_writer() const {
  world_.wait_until([this] { return writer_.ended(std::chrono::milliseconds(100)); });
}

/// Without the last checkpoint a run has not ended well.
void Trainer::finish_saving() {
  wait_for_writer();
  on_first_rank(world_, [&] {
    const std::string failure = writer_.wait();
    if (!failure.empty()) throw std::runtime_error(failure);
  });
}

/// Every rank sees the signal in its own time: they stop at the step at which any has.
void Trainer::stop_if_asked() const {
  const auto signal = world_.max(static_cast<int64_t>(StopSignals::received()));
  if (signal != 0) throw Stopped{static_cast<int>(signal)};
}

void Trainer::record(const run::SkipMetrics& skip) {
  if (metrics_) metrics_->file.write(skip);
}
void Trainer::record(const auto& metrics) {
  if (!metrics_) return;
  metrics_->file.write(metrics);
  metrics_->tensorboard.write(metrics);
}

void Trainer::save() {
  wait_for_writer();
  report(writer_.wait());
  if (metrics_) metrics_->file.sync();
  saved_ = step_;
  run::Checkpoint checkpoint;
  checkpoint.step = step_;
  checkpoint.position = loader_.position();
  checkpoint.seconds = seconds_;
  checkpoint.stage_starts = stage_starts_;
  std::erase_if(checkpoint.stage_starts, [&](int64_t start) { return start >= step_; });
  checkpoint.threads = at::get_num_threads();
  checkpoint.ranks = world_.size();
  checkpoint.corpus = corpus_.fingerprint();
  checkpoint.recipe = recipe_;
  checkpoint.random = at::detail::getDefaultCPUGenerator().get_state();
  checkpoint.skipped = skipped_;
  checkpoint.model = optimizer_.weights();
  checkpoint.optimizer = optimizer_.state();
  if (world_.is_first()) writer_.begin(checkpoint);
}

}  // namespace lighthouse::train
