#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/lighthouse/peak_memory.h"
#include "apps/lighthouse/table.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/ops/stages.h"

namespace lighthouse::app {
namespace {

using at::Tensor;
using nlohmann::ordered_json;

struct Settings {
  std::vector<int64_t> contexts{4096, 8192, 16384, 32768};
  std::vector<int64_t> budgets{512};
  int64_t batch = 1;
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t head_dim = 64;
  std::string dtype = "float32";
  Config config;
  std::string scorer = "norm";
  std::string selection = "published";
  int repeats = 7;
  int dense_repeats = 3;
  bool dense = true;
  int threads = at::get_num_threads();
  uint64_t seed = 0;
  std::string json;
};

/// Milliseconds of several runs.
class Times {
 public:
  void add(double milliseconds) { values_.push_back(milliseconds); }
  double median() const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const size_t half = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
  double lowest() const { return *std::min_element(values_.begin(), values_.end()); }
  double highest() const { return *std::max_element(values_.begin(), values_.end()); }
  ordered_json json() const {
    return {{"median_ms", median()}, {"min_ms", lowest()}, {"max_ms", highest()}};
  }

 private:
  std::vector<double> values_;
};

/// Runs `f` and adds how long it took.
template <class F>
auto timed(Times& times, const F& f) {
  const auto start = std::chrono::steady_clock::now();
  auto result = f();
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  times.add(spent.count());
  return result;
}

/// q, k and v as a model's projections give them: (B, H, N, D) views of (B, N, H, D).
struct Inputs {
  Tensor q, k, v;
  Tensor grad_out;

  std::vector<Tensor> qkv() const { return {q, k, v}; }
};

Inputs make_inputs(const Settings& settings, int64_t rows, at::ScalarType type) {
  at::manual_seed(settings.seed);
  const auto draw = [&](int64_t heads) {
    const auto options = at::TensorOptions().dtype(type);
    return at::randn({settings.batch, rows, heads, settings.head_dim}, options).transpose(1, 2);
  };
  Inputs inputs{draw(settings.heads), draw(settings.kv_heads), draw(settings.kv_heads),
                draw(settings.heads)};
  for (const Tensor& input : inputs.qkv()) input.set_requires_grad(true);
  return inputs;
}

std::vector<Tensor> gradients(const Tensor& out, const std::vector<Tensor>& inputs,
                              const Tensor& grad_out) {
  return torch::autograd::grad({out}, inputs, {grad_out});
}

/// One kind of attention: forward without gradients, and forward with backward.
struct Measured {
  Times forward;
  Times both;
  int64_t peak_bytes = 0;  ///< of forward with backward, beyond its inputs

  ordered_json json() const {
    return {
        {"forward", forward.json()}, {"forward_backward", both.json()}, {"peak_bytes", peak_bytes}};
  }
};

template <class Attention>
Measured measure(const Inputs& inputs, int repeats, const Attention& attention) {
  Measured measured;
  for (int i = 0; i < repeats; ++i) {
    {
      const at::NoGradGuard no_grad;
      timed(measured.forward, attention);
    }
    const PeakMemory memory;
    timed(measured.both, [&] { return gradients(attention(), inputs.qkv(), inputs.grad_out); });
    measured.peak_bytes = memory.peak_bytes();
  }
  return measured;
}

struct StageTimes {
  Times score, select, gather, attend, scatter;
  Times scatter_backward, attend_backward, gather_backward;

  std::vector<std::pair<const char*, const Times*>> all() const {
    return {{"score", &score},
            {"select", &select},
            {"gather", &gather},
            {"attend", &attend},
            {"scatter", &scatter},
            {"scatter'", &scatter_backward},
            {"attend'", &attend_backward},
            {"gather'", &gather_backward}};
  }
};

/// Every stage by itself, each cut off from the one before it so that its backward is its own.
StageTimes measure_stages(const Inputs& inputs, const Config& config, int repeats) {
  StageTimes times;
  const int64_t tokens = inputs.q.size(2);
  const auto leaf = [](const Tensor& tensor) { return tensor.detach().set_requires_grad(true); };
  for (int i = 0; i < repeats; ++i) {
    const Scored scored =
        timed(times.score, [&] { return score(inputs.q, inputs.k, inputs.v, config); });
    const auto selection = timed(times.select, [&] { return select(scored, tokens, config); });
    const auto gathered = timed(times.gather, [&] {
      return gather(inputs.q, inputs.k, inputs.v, scored.roots, selection, config);
    });
    const Gathered leaves{leaf(gathered.q), leaf(gathered.k), leaf(gathered.v)};
    const Tensor attended = timed(times.attend, [&] { return attend(leaves, config); });
    const Tensor attended_leaf = leaf(attended);
    const Tensor out =
        timed(times.scatter, [&] { return scatter(attended_leaf, selection, tokens, config); });

    const auto grad_attended = timed(
        times.scatter_backward, [&] { return gradients(out, {attended_leaf}, inputs.grad_out); });
    const auto grad_gathered = timed(times.attend_backward, [&] {
      return gradients(attended, {leaves.q, leaves.k, leaves.v}, grad_attended[0]);
    });
    timed(times.gather_backward, [&] {
      return torch::autograd::grad({gathered.q, gathered.k, gathered.v}, inputs.qkv(),
                                   grad_gathered);
    });
  }
  return times;
}

struct Row {
  int64_t context;
  Config config;
  int64_t rows;
  std::optional<Measured> dense;
  Measured lighthouse;
  Measured inner;  ///< stock attention over S rows alone
  StageTimes stages;

  /// What is not the inner attention, as a share of it.
  static double overhead(const Times& whole, const Times& inner) {
    return whole.median() / inner.median() - 1;
  }

  ordered_json json() const {
    ordered_json result{{"context", context},
                        {"budget", config.budget},
                        {"rows", rows},
                        {"lighthouse", lighthouse.json()},
                        {"inner", inner.json()}};
    if (dense) result["dense"] = dense->json();
    for (const auto& [name, times] : stages.all()) result["stages"][name] = times->json();
    return result;
  }
};

Row run(const Settings& settings, int64_t context, int64_t budget, at::ScalarType type) {
  Config config = settings.config;
  config.budget = budget;
  Row row{context, config, gathered_rows(context, config), {}, {}, {}, {}};
  const Inputs inputs = make_inputs(settings, context, type);
  const auto lighthouse = [&] { return attention(inputs.q, inputs.k, inputs.v, config); };
  const Inputs rows = make_inputs(settings, row.rows, type);
  const auto inner = [&] { return dense_attention(rows.q, rows.k, rows.v, config.scale); };

  measure(inputs, 1, lighthouse);  // warm-up
  row.lighthouse = measure(inputs, settings.repeats, lighthouse);
  row.inner = measure(rows, settings.repeats, inner);
  row.stages = measure_stages(inputs, config, settings.repeats);
  if (settings.dense) {
    row.dense = measure(inputs, settings.dense_repeats, [&] {
      return dense_attention(inputs.q, inputs.k, inputs.v, config.scale);
    });
  }
  return row;
}

std::string milliseconds(const Times& times) {
  const int digits = times.median() < 100 ? 1 : 0;
  return message(fixed(times.median(), digits), " (", fixed(times.lowest(), digits), "-",
                 fixed(times.highest(), digits), ")");
}

void print(const std::vector<Row>& rows) {
  constexpr double kMiB = 1 << 20;
  Table whole{{"context", "budget", "rows", "", "dense ms", "lighthouse ms", "speed-up", "inner ms",
               "overhead", "dense MiB", "lighthouse MiB"}};
  Table stages{{"context", "budget"}};
  for (const auto& [name, times] : rows.front().stages.all()) stages[0].emplace_back(name);
  for (const Row& row : rows) {
    const auto line = [&](const char* pass, Times Measured::*times, bool memory) {
      const Times& lighthouse = row.lighthouse.*times;
      const Times& inner = row.inner.*times;
      whole.push_back(
          {std::to_string(row.context), std::to_string(row.config.budget), std::to_string(row.rows),
           pass, row.dense ? milliseconds((*row.dense).*times) : "-", milliseconds(lighthouse),
           row.dense ? fixed(((*row.dense).*times).median() / lighthouse.median(), 1, "x") : "-",
           milliseconds(inner), fixed(100 * Row::overhead(lighthouse, inner), 1, " %"),
           memory && row.dense ? fixed(static_cast<double>(row.dense->peak_bytes) / kMiB, 0) : "",
           memory ? fixed(static_cast<double>(row.lighthouse.peak_bytes) / kMiB, 0) : ""});
    };
    line("forward", &Measured::forward, false);
    line("forward+backward", &Measured::both, true);
    stages.push_back({std::to_string(row.context), std::to_string(row.config.budget)});
    double sum = 0;
    for (const auto& [name, times] : row.stages.all()) sum += times->median();
    for (const auto& [name, times] : row.stages.all()) {
      stages.back().push_back(fixed(times->median(), 1, " ms ") +
                              fixed(100 * times->median() / sum, 0, " %"));
    }
  }
  print_table(std::cout, whole);
  std::cout << "\nThe stages (' is the backward pass), each alone, and its share of their sum:\n";
  print_table(std::cout, stages);
  std::cout << "\nMilliseconds: median (lowest-highest). Inner: stock attention over the gathered "
               "rows alone; overhead: all the rest, as a share of it. MiB: the most that was "
               "allocated at once beyond q, k, v and the incoming gradient.\n";
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

void bench_attention(Settings settings) {
  settings.config.scorer = parse_scorer(settings.scorer);
  settings.config.selection = parse_selection_rule(settings.selection);
  const std::map<std::string, at::ScalarType> types{{"float32", at::kFloat},
                                                    {"float64", at::kDouble},
                                                    {"bfloat16", at::kBFloat16},
                                                    {"float16", at::kHalf}};
  const auto type = types.find(settings.dtype);
  check_argument(type != types.end(), "--dtype is '", settings.dtype,
                 "'; it must be float32, float64, bfloat16 or float16");
  check_argument(
      settings.budgets.size() == 1 || settings.budgets.size() == settings.contexts.size(),
      "--budget has ", settings.budgets.size(),
      " values; it must have one, or one for "
      "each of the ",
      settings.contexts.size(), " contexts");
  // A setting that cannot run must be said before the first minutes are spent.
  const auto budget = [&](size_t i) {
    return settings.budgets[settings.budgets.size() == 1 ? 0 : i];
  };
  for (size_t i = 0; i < settings.contexts.size(); ++i) {
    Config config = settings.config;
    config.budget = budget(i);
    gathered_rows(settings.contexts[i], config);
  }
  std::ofstream json;
  if (!settings.json.empty()) {
    json.open(settings.json);
    check_argument(json.good(), "--json is '", settings.json, "', which cannot be written");
  }
  at::set_num_threads(settings.threads);

  const Config& config = settings.config;
  const std::string title = message(
      processor(), ", ", at::get_num_threads(), " threads, PyTorch " TORCH_VERSION ", ",
      settings.dtype, ", batch ", settings.batch, ", ", settings.heads, " heads on ",
      settings.kv_heads, " of ", settings.head_dim, ", levels ", config.levels, ", pooling_factor ",
      config.pooling_factor, ", tile_budget ", config.tile_budget, ", scorer ",
      to_string(config.scorer), ", selection ", to_string(config.selection), ", seed ",
      settings.seed, ", ", settings.repeats, " repeats, dense ", settings.dense_repeats);
  std::cout << title << "\n\n";

  std::vector<Row> rows;
  for (size_t i = 0; i < settings.contexts.size(); ++i) {
    std::cerr << "context " << settings.contexts[i] << ", budget " << budget(i) << " ...\n";
    rows.push_back(run(settings, settings.contexts[i], budget(i), type->second));
  }
  print(rows);
  if (json.is_open()) {
    ordered_json all{{"title", title}, {"rows", ordered_json::array()}};
    for (const Row& row : rows) all["rows"].push_back(row.json());
    json << all.dump(2) << '\n';
    check_argument(json.flush().good(), "--json is '", settings.json, "', which cannot be written");
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Times attention, dense and Lighthouse");
  bench->require_subcommand(1);
  CLI::App* attention = bench->add_subcommand(
      "attention", "Dense and Lighthouse attention over a list of contexts, and every stage");
  const auto settings = std::make_shared<Settings>();
  Settings& s = *settings;
  const auto option = [&](const char* name, auto& value, const char* help) {
    return attention->add_option(name, value, help)->capture_default_str();
  };
  const CLI::Range positive(1, 1 << 30);
  option("--context", s.contexts, "tokens, one or more")->delimiter(',');
  option("--budget", s.budgets, "entries refined a level: one, or one for each context")
      ->delimiter(',');
  option("--batch", s.batch, "sequences")->check(positive);
  option("--heads", s.heads, "query heads")->check(positive);
  option("--kv-heads", s.kv_heads, "key/value heads")->check(positive);
  option("--head-dim", s.head_dim, "head dimension")->check(positive);
  option("--dtype", s.dtype, "float32, float64, bfloat16 or float16");
  option("--levels", s.config.levels, "levels of the pyramid");
  option("--pooling-factor", s.config.pooling_factor, "children of an entry");
  option("--tile-budget", s.config.tile_budget, "entries refined in each tile at each level");
  option("--scorer", s.scorer, "norm or dilated");
  option("--dilation", s.config.dilation, "interleaved sub-sequences of the dilated scorer");
  option("--selection", s.selection, "published or causal");
  option("--repeats", s.repeats, "timed runs of Lighthouse")->check(positive);
  option("--dense-repeats", s.dense_repeats, "timed runs of dense attention")->check(positive);
  attention->add_flag("!--no-dense", s.dense, "leave dense attention out");
  option("--threads", s.threads, "threads")->check(positive);
  option("--seed", s.seed, "of the inputs");
  option("--json", s.json, "also write all figures to this file");
  attention->callback([settings] { bench_attention(*settings); });
}

}  // namespace lighthouse::app
