#include "apps/lighthouse/curves.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>

#include "apps/lighthouse/svg.h"
#include "lighthouse/core/check.h"
#include "lighthouse/train/run_folder.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;
using train::EvalMetrics;
using train::StepMetrics;

constexpr std::array<const char*, 8> kColors{"#1f77b4", "#d62728", "#2ca02c", "#9467bd",
                                             "#ff7f0e", "#17becf", "#8c564b", "#e377c2"};

std::string color_of(size_t run) { return kColors[run % kColors.size()]; }

double million_tokens(const auto& record) { return static_cast<double>(record.tokens) / 1e6; }
double seconds(const auto& record) { return record.seconds; }

constexpr size_t kMostPoints = 400;  ///< of a curve: a picture has no room for more

/// A curve of each run through its steps, or the means of neighbours in a stage where those are
/// many, and where its stages end.
Panel over_steps(const std::vector<RunMetrics>& runs, double (*x)(const StepMetrics&),
                 const std::function<double(const StepMetrics&)>& y, bool faint) {
  Panel panel;
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto& steps = runs[i].history.steps;
    Curve curve{faint ? "" : runs[i].name, color_of(i), {}, false, faint};
    const size_t together = (steps.size() + kMostPoints - 1) / kMostPoints;
    double sum_x = 0, sum_y = 0, count = 0;
    for (size_t j = 0; j < steps.size(); ++j) {
      sum_x += x(steps[j]);
      sum_y += y(steps[j]);
      ++count;
      const bool last = j + 1 == steps.size();
      const bool switches = !last && steps[j + 1].stage != steps[j].stage;
      if (switches) panel.marks.emplace_back(x(steps[j]), color_of(i));
      if (!last && !switches && count < static_cast<double>(together)) continue;
      curve.points.emplace_back(sum_x / count, sum_y / count);
      sum_x = sum_y = count = 0;
    }
    panel.curves.push_back(curve);
  }
  return panel;
}

/// Loss while training and, dense, on held-out text.
Panel losses(const std::vector<RunMetrics>& runs, double (*of_step)(const StepMetrics&),
             double (*of_eval)(const EvalMetrics&), const char* label) {
  Panel panel = over_steps(
      runs, of_step, [](const StepMetrics& step) { return step.loss; }, /*faint=*/true);
  panel.x_label = label;
  panel.y_label = "nats per token";
  double highest = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve held_out{runs[i].name + ", held-out, dense", color_of(i), {}, true, false};
    for (const EvalMetrics& eval : runs[i].history.evals) {
      held_out.points.emplace_back(of_eval(eval), eval.dense_loss);
      if (eval.step > 0) highest = std::max(highest, eval.dense_loss);
    }
    panel.curves.push_back(held_out);
  }
  // The fall from where an untrained model stands would take most of the axis.
  if (highest > 0) panel.highest = 1.05 * highest;
  return panel;
}

RunMetrics read_run(const fs::path& folder) {
  const train::RunFolder run(folder);
  check_argument(fs::exists(run.metrics()), "RUN is '", folder.string(),
                 "'; it must be the folder of a run, with a metrics.jsonl");
  RunMetrics metrics{run.name(), train::read_metrics(run.metrics())};
  check_argument(!metrics.history.steps.empty() || !metrics.history.evals.empty(), "'",
                 run.metrics().string(), "' has no steps yet");
  return metrics;
}

}  // namespace

std::vector<RunMetrics> read_run_metrics(const std::vector<std::string>& folders) {
  std::vector<RunMetrics> runs;
  std::map<std::string, int> named;
  for (const std::string& folder : folders) ++named[runs.emplace_back(read_run(folder)).name];
  for (size_t i = 0; i < runs.size(); ++i) {
    if (named[runs[i].name] > 1) runs[i].name = folders[i];
  }
  return runs;
}

std::string picture_of(const std::vector<RunMetrics>& runs) {
  Panel speed = over_steps(
      runs, million_tokens<StepMetrics>,
      [](const StepMetrics& step) { return step.tokens_per_second / 1e3; }, /*faint=*/false);
  speed.x_label = "million tokens";
  speed.y_label = "thousand tokens a second";
  speed.from_zero = true;
  Panel memory = over_steps(
      runs, million_tokens<StepMetrics>,
      [](const StepMetrics& step) { return static_cast<double>(step.memory_bytes) / (1 << 30); },
      /*faint=*/false);
  memory.x_label = "million tokens";
  memory.y_label = "memory, GiB";
  memory.from_zero = true;
  return svg(
      "Loss while training (thin) and on held-out text (dots); throughput; memory",
      {losses(runs, million_tokens<StepMetrics>, million_tokens<EvalMetrics>, "million tokens"),
       losses(runs, seconds<StepMetrics>, seconds<EvalMetrics>, "seconds of training"), speed,
       memory});
}

}  // namespace lighthouse::app
