#include "lighthouse/run/metrics.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <variant>

#include "lighthouse/core/check.h"
#include "lighthouse/io/json.h"

namespace lighthouse::run {
namespace {

using nlohmann::ordered_json;
using Line = std::variant<StepMetrics, SkipMetrics, EvalMetrics>;

std::string to_line(const StepMetrics& m) {
  return ordered_json{{"kind", "step"},
                      {"step", m.step},
                      {"stage", m.stage},
                      {"attention", m.attention},
                      {"loss", m.loss},
                      {"lr", m.lr},
                      {"grad_norm", m.grad_norm},
                      {"tokens", m.tokens},
                      {"seconds", m.seconds},
                      {"tokens_per_second", m.tokens_per_second},
                      {"memory_bytes", m.memory_bytes}}
             .dump() +
         '\n';
}

std::string to_line(const SkipMetrics& m) {
  return ordered_json{{"kind", "skip"}, {"step", m.step}, {"stage", m.stage}, {"why", m.why}}
             .dump() +
         '\n';
}

Line parse(std::string_view text) {
  const auto json = ordered_json::parse(text);
  if (json.at("kind") == "eval") {
    return EvalMetrics{.step = json.at("step"),
                       .stage = json.at("stage"),
                       .when = json.at("when"),
                       .dense_loss = io::number(json.at("dense_loss")),
                       .trained_loss = io::number(json.at("trained_loss")),
                       .tokens = json.at("tokens"),
                       .seconds = json.at("seconds")};
  }
  if (json.at("kind") == "skip") {
    return SkipMetrics{.step = json.at("step"), .stage = json.at("stage"), .why = json.at("why")};
  }
  return StepMetrics{.step = json.at("step"),
                     .stage = json.at("stage"),
                     .attention = json.at("attention"),
                     .loss = json.at("loss"),
                     .lr = json.at("lr"),
                     .grad_norm = json.at("grad_norm"),
                     .tokens = json.at("tokens"),
                     .seconds = json.at("seconds"),
                     .tokens_per_second = json.at("tokens_per_second"),
                     .memory_bytes = json.value("memory_bytes", int64_t{0})};
}

/// Calls `visit` with each whole line, '\n' included, and its contents, while that returns true.
template <class Visit>
void for_each_line(const std::filesystem::path& path, const Visit& visit) {
  const std::string text = io::read_file(path);
  std::string_view rest = text;
  for (int64_t number = 1; rest.find('\n') != std::string_view::npos; ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n') + 1);
    rest.remove_prefix(line.size());
    try {
      if (!visit(line, parse(line))) return;
    } catch (const nlohmann::json::exception& error) {
      throw std::runtime_error(message("'", path.string(), "', line ", number,
                                       " is not a line of metrics: ", error.what()));
    }
  }
}

const std::filesystem::path& cut(const std::filesystem::path& path, int64_t steps_done) {
  std::string kept;
  if (std::filesystem::exists(path)) {
    for_each_line(path, [&](std::string_view line, const Line& contents) {
      const auto* eval = std::get_if<EvalMetrics>(&contents);
      const auto step = std::visit([](const auto& any) { return any.step; }, contents);
      const bool keep = eval != nullptr ? step < steps_done : step <= steps_done;
      if (keep) kept += line;
      return keep;
    });
  }
  io::write_atomically(path, kept);
  return path;
}

}  // namespace

std::string to_line(const EvalMetrics& m) {
  return ordered_json{{"kind", "eval"},
                      {"step", m.step},
                      {"stage", m.stage},
                      {"when", m.when},
                      {"dense_loss", m.dense_loss},
                      {"trained_loss", m.trained_loss},
                      {"tokens", m.tokens},
                      {"seconds", m.seconds}}
             .dump() +
         '\n';
}

MetricsHistory read_metrics(const std::filesystem::path& path) {
  MetricsHistory history;
  for_each_line(path, [&](std::string_view, const Line& contents) {
    if (const auto* step = std::get_if<StepMetrics>(&contents)) history.steps.push_back(*step);
    if (const auto* skip = std::get_if<SkipMetrics>(&contents)) history.skips.push_back(*skip);
    if (const auto* eval = std::get_if<EvalMetrics>(&contents)) history.evals.push_back(*eval);
    return true;
  });
  return history;
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t steps_done)
    : file_(cut(path, steps_done)) {}

void MetricsFile::write(const StepMetrics& step) { file_.append(to_line(step)); }
void MetricsFile::write(const SkipMetrics& skip) { file_.append(to_line(skip)); }
void MetricsFile::write(const EvalMetrics& eval) { file_.append(to_line(eval)); }

}  // namespace lighthouse::run
