#include "lighthouse/train/summary.h"

#include <algorithm>
#include <iomanip>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

#include "lighthouse/train/stage.h"

namespace lighthouse::train {
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

Summary summarize(const Recipe& recipe, const MetricsHistory& history,
                  double token_frequency_loss) {
  Summary summary;
  summary.token_frequency_loss = token_frequency_loss;
  int64_t last = 0;
  for (const StageRecipe& stage : recipe.stages) {
    const int64_t first = last;
    last += stage.steps;
    StageSummary s;
    s.before = eval_of(history, stage.name, "before");
    s.after = eval_of(history, stage.name, "after");
    s.name = stage.name;
    s.attention = attention_name(stage.lighthouse);
    s.steps = stage.steps;
    s.tokens = stage.steps * stage.batch * stage.context;
    s.seconds = s.after.seconds - s.before.seconds;
    s.tokens_per_second = static_cast<double>(s.tokens) / s.seconds;
    s.train_loss = final_train_loss(history, first, last);
    summary.stages.push_back(s);
  }
  return summary;
}

std::string to_json(const Summary& summary) {
  using nlohmann::ordered_json;
  ordered_json stages = ordered_json::array();
  for (const StageSummary& s : summary.stages) {
    stages.push_back({{"name", s.name},
                      {"attention", s.attention},
                      {"steps", s.steps},
                      {"tokens", s.tokens},
                      {"seconds", s.seconds},
                      {"tokens_per_second", s.tokens_per_second},
                      {"train_loss", s.train_loss},
                      {"dense_loss_before", s.before.dense_loss},
                      {"trained_loss_before", s.before.trained_loss},
                      {"dense_loss_after", s.after.dense_loss},
                      {"trained_loss_after", s.after.trained_loss}});
  }
  const ordered_json all{{"stages", stages},
                         {"token_frequency_loss", summary.token_frequency_loss}};
  return all.dump(2) + '\n';
}

void print(std::ostream& out, const Summary& summary) {
  std::ostringstream table;
  size_t width = 5;
  for (const StageSummary& s : summary.stages) width = std::max(width, s.name.size());
  const auto name = static_cast<int>(width);
  table << std::fixed << std::setw(name + 70) << "held out, dense" << std::setw(23) << "as trained"
        << '\n'
        << std::left << std::setw(name) << "stage"
        << "  " << std::setw(10) << "attention" << std::right << std::setw(8) << "steps"
        << std::setw(10) << "seconds" << std::setw(11) << "tokens/s" << std::setw(12)
        << "train loss" << std::setw(11) << "before" << std::setw(9) << "after" << std::setw(13)
        << "before" << std::setw(9) << "after" << '\n';
  for (const StageSummary& s : summary.stages) {
    table << std::left << std::setw(name) << s.name << "  " << std::setw(10) << s.attention
          << std::right << std::setw(8) << s.steps << std::setprecision(1) << std::setw(10)
          << s.seconds << std::setprecision(0) << std::setw(11) << s.tokens_per_second
          << std::setprecision(4) << std::setw(12) << s.train_loss << std::setw(11)
          << s.before.dense_loss << std::setw(9) << s.after.dense_loss << std::setw(13)
          << s.before.trained_loss << std::setw(9) << s.after.trained_loss << '\n';
  }
  table << "Losses are nats per token; token frequencies alone reach "
        << summary.token_frequency_loss << " on the held-out text.\n";
  out << table.str();
}

}  // namespace lighthouse::train
