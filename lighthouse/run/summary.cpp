#include "lighthouse/run/summary.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/json.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::run {
namespace {

/// The evaluation before or after a stage. A run that was forced to go on with other stages may
/// lack it: its losses are NaN then.
EvalMetrics eval_of(const MetricsHistory& history, const std::string& stage, const char* when) {
  const auto found = std::find_if(
      history.evals.rbegin(), history.evals.rend(),
      [&](const EvalMetrics& eval) { return eval.stage == stage && eval.when == when; });
  if (found != history.evals.rend()) return *found;
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  return {0, stage, when, kNone, kNone, 0, kNone};
}

/// The mean loss over the last tenth of the steps after `first`, up to `last`.
double final_train_loss(const MetricsHistory& history, int64_t first, int64_t last) {
  std::vector<double> losses;
  for (const StepMetrics& step : history.steps) {
    if (first < step.step && step.step <= last) losses.push_back(step.loss);
  }
  const size_t count = (losses.size() + 9) / 10;
  double sum = 0;
  for (size_t i = losses.size() - count; i < losses.size(); ++i) sum += losses[i];
  return sum / static_cast<double>(count);
}

}  // namespace

Summary summarize(const Recipe& recipe, const std::vector<int64_t>& stage_starts,
                  const MetricsHistory& history, double token_frequency_loss) {
  Summary summary;
  summary.token_frequency_loss = token_frequency_loss;
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    const StageRecipe& stage = recipe.stages[i];
    const int64_t first = stage_starts[i], last = stage_starts[i + 1];
    const EvalMetrics before = eval_of(history, stage.name, "before");
    const EvalMetrics after = eval_of(history, stage.name, "after");
    StageSummary s;
    s.name = stage.name;
    s.attention = computed_attention(stage);
    s.local = pieces_of(stage);
    s.steps = last - first;
    s.tokens = s.steps * stage.tokens_per_step();
    s.seconds = after.seconds - before.seconds;
    s.tokens_per_second = static_cast<double>(s.tokens) / s.seconds;
    s.train_loss = final_train_loss(history, first, last);
    s.dense_loss_before = before.dense_loss;
    s.trained_loss_before = before.trained_loss;
    s.dense_loss_after = after.dense_loss;
    s.trained_loss_after = after.trained_loss;
    summary.stages.push_back(s);
  }
  return summary;
}

std::string to_json(const Summary& summary) {
  using nlohmann::ordered_json;
  ordered_json stages = ordered_json::array();
  for (const StageSummary& s : summary.stages) {
    stages.push_back({{"name", s.name},
                      {"attention", to_string(s.attention)},
                      {"local", s.local},
                      {"steps", s.steps},
                      {"tokens", s.tokens},
                      {"seconds", s.seconds},
                      {"tokens_per_second", s.tokens_per_second},
                      {"train_loss", s.train_loss},
                      {"dense_loss_before", s.dense_loss_before},
                      {"trained_loss_before", s.trained_loss_before},
                      {"dense_loss_after", s.dense_loss_after},
                      {"trained_loss_after", s.trained_loss_after}});
  }
  const ordered_json all{{"stages", stages},
                         {"token_frequency_loss", summary.token_frequency_loss}};
  return all.dump(2) + '\n';
}

Summary read_summary(const std::filesystem::path& file) {
  using io::number;
  try {
    const auto all = nlohmann::json::parse(io::read_file(file));
    Summary summary{.stages = {}, .token_frequency_loss = number(all.at("token_frequency_loss"))};
    for (const auto& stage : all.at("stages")) {
      summary.stages.push_back(
          {.name = stage.at("name"),
           .attention = parse_word<nn::Mode>(stage.at("attention").get<std::string>(), "attention"),
           .local = stage.value("local", int64_t{0}),
           .steps = stage.at("steps"),
           .tokens = stage.at("tokens"),
           .seconds = number(stage.at("seconds")),
           .tokens_per_second = number(stage.at("tokens_per_second")),
           .train_loss = number(stage.at("train_loss")),
           .dense_loss_before = number(stage.at("dense_loss_before")),
           .trained_loss_before = number(stage.at("trained_loss_before")),
           .dense_loss_after = number(stage.at("dense_loss_after")),
           .trained_loss_after = number(stage.at("trained_loss_after"))});
    }
    if (!summary.stages.empty()) return summary;
  } catch (const std::exception& error) {
    throw std::runtime_error(
        message("'", file.string(), "' is not the summary of a run: ", error.what()));
  }
  throw std::runtime_error(message("'", file.string(), "' is the summary of a run without stages"));
}

double Summary::seconds() const {
  return std::accumulate(stages.begin(), stages.end(), 0.0,
                         [](double sum, const StageSummary& s) { return sum + s.seconds; });
}

double Summary::tokens() const {
  return std::accumulate(stages.begin(), stages.end(), 0.0, [](double sum, const StageSummary& s) {
    return sum + static_cast<double>(s.tokens);
  });
}

void print(std::ostream& out, const Summary& summary) {
  using io::fixed;
  io::Table table{{"stage", "attention", "steps", "seconds", "tokens/s", "train loss",
                   "dense before", "dense after", "as trained before", "as trained after"}};
  for (const StageSummary& s : summary.stages) {
    table.push_back({s.name, attention_name(s.attention, s.local), std::to_string(s.steps),
                     fixed(s.seconds, 1), fixed(s.tokens_per_second, 0), fixed(s.train_loss, 4),
                     fixed(s.dense_loss_before, 4), fixed(s.dense_loss_after, 4),
                     fixed(s.trained_loss_before, 4), fixed(s.trained_loss_after, 4)});
  }
  io::print_table(out, table, 2);
  out << "Losses are nats per token; before and after are held-out. Token frequencies alone reach "
      << fixed(summary.token_frequency_loss, 4) << " on the held-out text.\n";
}

}  // namespace lighthouse::run
