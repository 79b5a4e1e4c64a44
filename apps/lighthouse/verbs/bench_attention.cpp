#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/clock.h"
#include "apps/lighthouse/device.h"
#include "apps/lighthouse/output_file.h"
#include "apps/lighthouse/peak_memory.h"
#include "apps/lighthouse/verbs/bench.h"
#include "lighthouse/core/check.h"
#include "lighthouse/core/geometry.h"
#include "lighthouse/core/settings.h"
#include "lighthouse/io/table.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/documents.h"
#include "lighthouse/ops/pieces.h"
#include "lighthouse/ops/sequences.h"
#include "lighthouse/ops/stages.h"
#include "lighthouse/train/device.h"

namespace lighthouse::app {
namespace {

using at::Tensor;
using io::fixed;
using io::print_table;
using io::Table;
using nlohmann::ordered_json;

struct Settings {
  std::vector<int64_t> contexts{4096, 8192, 16384, 32768};
  std::vector<int64_t> budgets{512};
  int64_t batch = 1;
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t head_dim = 64;
  std::string dtype = "float32";
  std::string device = "cpu";
  std::string attention_kernel = "auto";
  bool deterministic = false;
  Config config;
  int64_t documents = 0;
  int repeats = 7;
  int dense_repeats = 3;
  bool dense = true;
  int threads = at::get_num_threads();
  uint64_t seed = 0;
  std::string json;
};

const std::map<std::string, at::ScalarType> kTypes{{"float32", at::kFloat},
                                                   {"float64", at::kDouble},
                                                   {"bfloat16", at::kBFloat16},
                                                   {"float16", at::kHalf}};

/// Calls `visit` for every setting of attention but the budget, of which there may be several.
template <class AnyConfig, class Visit>
void for_each_option(AnyConfig& config, const Visit& visit) {
  for_each_setting(config, [&](const Setting& setting, auto& value) {
    if (setting.name != std::string_view("budget")) visit(setting, value);
  });
}

struct Inputs {
  Tensor q, k, v;
  Tensor grad_out;

  std::vector<Tensor> qkv() const { return {q, k, v}; }
  at::Device device() const { return q.device(); }
};

/// Standard normals.
/// @param tokens_major (B, H, N, D) as views of (B, N, H, D), as a model's projections give them;
///                     else contiguous, as the gather stage does
Inputs make_inputs(const Settings& settings, int64_t rows, bool tokens_major) {
  const auto options = at::TensorOptions()
                           .dtype(kTypes.at(settings.dtype))
                           .device(train::find_device(settings.device, "--device"));
  at::manual_seed(settings.seed);
  const auto draw = [&](int64_t heads) {
    return tokens_major ? at::randn({settings.batch, rows, heads, settings.head_dim}, options)
                              .transpose(1, 2)
                        : at::randn({settings.batch, heads, rows, settings.head_dim}, options);
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
  Clock clock(inputs.device());
  for (int i = 0; i < repeats; ++i) {
    {
      const at::NoGradGuard no_grad;
      clock.time(measured.forward, attention);
    }
    const PeakMemory memory(inputs.device());
    clock.time(measured.both,
               [&] { return gradients(attention(), inputs.qkv(), inputs.grad_out); });
    measured.peak_bytes = memory.peak_bytes();
  }
  clock.settle();
  return measured;
}

/// With pieces `near` is attention inside them, and merge stands in place of scatter.
struct StageTimes {
  Times score, select, gather, attend, near, scatter;
  Times scatter_backward, attend_backward, near_backward, gather_backward;
  bool pieces = false;

  std::vector<std::pair<const char*, const Times*>> all() const {
    std::vector<std::pair<const char*, const Times*>> stages{
        {"score", &score},
        {"select", &select},
        {"gather", &gather},
        {"attend", &attend},
        {"near", &near},
        {pieces ? "merge" : "scatter", &scatter},
        {pieces ? "merge'" : "scatter'", &scatter_backward},
        {"attend'", &attend_backward},
        {"near'", &near_backward},
        {"gather'", &gather_backward}};
    if (!pieces) {
      std::erase_if(stages,
                    [](const auto& s) { return std::string_view(s.first).starts_with("near"); });
    }
    return stages;
  }
};

/// What follows attention over the rows where there are pieces: near, merge, and all of the
/// backward.
void time_pieces(const Inputs& inputs, const Config& config, const Selection& selection,
                 const Gathered& gathered, const Attended& attended, Clock& clock,
                 StageTimes& times) {
  const at::NoGradGuard no_grad;
  const Geometry geometry(inputs.q.size(2), config);
  const Pieces pieces(geometry.tokens, config.local, config.local_shift);
  const auto [near, near_sums] = clock.time(times.near, [&] {
    return ops::attend_pieces(inputs.q, inputs.k, inputs.v, config.local, config.local_shift,
                              config.scale);
  });
  const Tensor out = at::empty_like(near), sums = at::empty_like(near_sums);
  const Tensor near_out = near, near_logsumexp = near_sums;  // lambdas take no bindings
  clock.time(times.scatter, [&] {
    ops::merge_into(ops::segments_of(near_out, pieces),
                    ops::segments_of_logsumexp(near_logsumexp, pieces, near_out.size(1)), pieces,
                    attended, selection.slots, geometry, out, sums);
    return out;
  });
  const ops::MergedRows merged = clock.time(times.scatter_backward, [&] {
    return ops::merge_backward(inputs.grad_out, out, sums, pieces, attended.logsumexp,
                               selection.rows, selection.slots, geometry);
  });
  const AttendGradients far = clock.time(times.attend_backward, [&] {
    return attend_backward(merged.grad_out, gathered.q, gathered.k, gathered.v,
                           {merged.out, attended.logsumexp}, /*causal=*/true, config.scale);
  });
  const auto [grad_q, grad_k, grad_v] = clock.time(times.near_backward, [&] {
    return ops::attend_pieces_backward(inputs.grad_out, inputs.q, inputs.k, inputs.v, out, sums,
                                       config.local, config.local_shift, config.scale);
  });
  const Tensor grads[]{grad_q, grad_k, grad_v};
  const ops::NearSegments of_near{pieces, ops::segments_of(grad_q, pieces),
                                  ops::segments_of(grad_k, pieces),
                                  ops::segments_of(grad_v, pieces)};
  clock.time(times.gather_backward, [&] {
    ops::gather_backward_into(far.q, far.k, far.v, selection.slots, geometry, grads[0], grads[1],
                              grads[2], of_near);
    return grads[0];
  });
}

/// Every stage by itself, each cut off from the one before it so that its backward is its own.
StageTimes measure_stages(const Inputs& inputs, const Config& config, int repeats) {
  StageTimes times;
  times.pieces = config.local > 0;
  Clock clock(inputs.device());
  const int64_t tokens = inputs.q.size(2);
  const auto leaf = [](const Tensor& tensor) { return tensor.detach().set_requires_grad(true); };
  for (int i = 0; i < repeats; ++i) {
    const Scored scored =
        clock.time(times.score, [&] { return score(inputs.q, inputs.k, inputs.v, config); });
    const auto selection = clock.time(times.select, [&] { return select(scored, tokens, config); });
    const auto gathered = clock.time(times.gather, [&] {
      return gather(inputs.q, inputs.k, inputs.v, scored.roots, selection, config);
    });
    const Gathered leaves{leaf(gathered.q), leaf(gathered.k), leaf(gathered.v)};
    const Attended sums = clock.time(times.attend, [&] { return attend(leaves, config); });
    if (times.pieces) {
      time_pieces(inputs, config, selection, leaves, {sums.out.detach(), sums.logsumexp}, clock,
                  times);
      continue;
    }
    const Tensor& attended = sums.out;
    const Tensor attended_leaf = leaf(attended);
    const Tensor out = clock.time(
        times.scatter, [&] { return scatter(attended_leaf, selection, tokens, config); });

    const auto grad_attended = clock.time(
        times.scatter_backward, [&] { return gradients(out, {attended_leaf}, inputs.grad_out); });
    const auto grad_gathered = clock.time(times.attend_backward, [&] {
      return gradients(attended, {leaves.q, leaves.k, leaves.v}, grad_attended[0]);
    });
    clock.time(times.gather_backward, [&] {
      return torch::autograd::grad({gathered.q, gathered.k, gathered.v}, inputs.qkv(),
                                   grad_gathered);
    });
  }
  clock.settle();
  return times;
}

/// The bytes that each stage must move: what it reads, once, and what it writes, once. Those of
/// attend say nothing, since it is bound by arithmetic.
std::vector<int64_t> stage_bytes(const Settings& settings, const Geometry& g) {
  const int64_t row = settings.batch * settings.head_dim *
                      static_cast<int64_t>(c10::elementSize(kTypes.at(settings.dtype)));
  const int64_t columns = settings.heads + 2 * settings.kv_heads;
  const int64_t of_head = settings.batch * settings.kv_heads * int64_t{sizeof(int32_t)};
  const int64_t entries = g.coarse_entries();
  const int64_t roots = g.levels > 1 ? g.roots : 0;
  // Of the levels below the roots, the tokens in the windows of the highest: those of the others
  // are among them.
  int64_t gathered_tokens = g.tokens;
  if (g.levels > 1) {
    gathered_tokens = 0;
    for (int64_t t = 0; t < g.tiles; ++t) {
      const int64_t refined = std::min(g.tile_budget, g.tile_root(t + 1) - g.tile_root(t));
      gathered_tokens += refined * g.root_window();
    }
  }
  const int64_t score = (g.tokens + roots) * columns * row + 2 * entries * of_head;
  const int64_t select = (3 * entries + g.rows) * of_head;
  const int64_t gather = (gathered_tokens + roots + g.rows) * columns * row;
  const int64_t scatter = (g.rows + g.tokens) * settings.heads * row;
  const int64_t gather_backward = (g.rows + g.tokens) * columns * row;
  if (settings.config.local == 0) {
    return {score, select, gather, 0, scatter, scatter, 0, gather_backward};
  }
  const int64_t near = g.tokens * settings.heads * row;
  return {score,
          select,
          gather,
          0,
          0,
          scatter + near,
          scatter + near + g.rows * settings.heads * row,
          0,
          0,
          gather_backward + g.tokens * columns * row};
}

/// Bytes read and written by a copy, in a second.
double copy_bandwidth(at::Device device) {
  const int64_t bytes = device.is_cpu() ? 256 << 20 : 2048LL << 20;
  const Tensor from = at::ones({bytes}, at::TensorOptions().device(device).dtype(at::kByte));
  const Tensor to = at::empty_like(from);
  Times times;
  Clock clock(device);
  for (int i = 0; i < 10; ++i) clock.time(times, [&] { return to.copy_(from); });
  clock.settle();
  return 2 * static_cast<double>(bytes) / (times.median() / 1000);
}

/// Lighthouse where documents are packed into each sequence, and stock attention of it alone.
struct Packed {
  Measured lighthouse;
  Measured inner;
  Measured near;
  int64_t rows = 0;

  ordered_json json() const {
    return {{"rows", rows},
            {"lighthouse", lighthouse.json()},
            {"inner", inner.json()},
            {"near", near.json()}};
  }
};

/// Documents of lengths drawn at random, the same in each sequence of the batch: (B, M).
Tensor document_starts(const Settings& settings, const Inputs& inputs) {
  std::vector<int32_t> tokens(inputs.q.size(2) - 1), starts{0};
  std::iota(tokens.begin(), tokens.end(), 1);
  std::sample(tokens.begin(), tokens.end(), std::back_inserter(starts), settings.documents - 1,
              std::mt19937_64(settings.seed));
  return at::tensor(starts, at::kInt).expand({settings.batch, -1}).contiguous().to(inputs.device());
}

/// @param measured (inputs, attention) -> Measured
template <class Measure>
Packed measure_packed(const Settings& settings, const Inputs& inputs, const Config& config,
                      const Measure& measured) {
  const Tensor starts = document_starts(settings, inputs);
  const PackedDocuments documents = packed(starts, inputs.q, config);
  const Geometry geometry(inputs.q.size(2), config, documents.most());
  const Selection selection = select(inputs.q, inputs.k, inputs.v, config, {}, starts);
  const Scored scored = score(inputs.q, inputs.k, inputs.v, config, {}, documents);
  const Gathered gathered =
      gather(inputs.q, inputs.k, inputs.v, scored.roots, selection, config, documents);
  const auto leaf = [](const Tensor& tensor) { return tensor.detach().set_requires_grad(true); };
  const Inputs rows{leaf(gathered.q), leaf(gathered.k), leaf(gathered.v),
                    at::randn_like(gathered.q.detach())};
  const Tensor borders = ops::row_borders(*documents.borders, selection.slots, geometry);
  return {
      .lighthouse = measured(
          inputs, [&] { return attention(inputs.q, inputs.k, inputs.v, config, {}, starts); }),
      .inner = measured(rows,
                        [&] {
                          return attend_sequences(rows.q, rows.k, rows.v, borders, geometry.rows,
                                                  config.scale)
                              .out;
                        }),
      .near = measured(
          inputs, [&] { return local_attention(inputs.q, inputs.k, inputs.v, config, starts); }),
      .rows = geometry.rows};
}

struct Row {
  int64_t context = 0;
  Config config;
  int64_t rows = 0;
  std::optional<Measured> dense;
  Measured lighthouse;
  Measured inner;                ///< stock attention over S rows alone
  std::optional<Measured> near;  ///< stock attention inside the pieces alone
  std::optional<Packed> packed;
  StageTimes stages;
  std::vector<int64_t> stage_bytes;
  std::string inner_kernel, dense_kernel;  ///< of PyTorch, that attention ran on
  Times scorer_attention;  ///< the two stock attentions that the dilated scorer is made of

  /// Milliseconds of stock attention, over the rows and inside the pieces.
  double stock(Times Measured::*times) const {
    return (inner.*times).median() + (near ? ((*near).*times).median() : 0);
  }

  ordered_json json() const {
    ordered_json result{{"context", context},
                        {"budget", config.budget},
                        {"rows", rows},
                        {"lighthouse", lighthouse.json()},
                        {"inner", inner.json()}};
    if (dense) result["dense"] = dense->json();
    if (near) result["near"] = near->json();
    if (packed) result["packed"] = packed->json();
    if (config.scorer == Scorer::kDilated) {
      result["scorer_attention"] = scorer_attention.json();
    }
    result["inner_kernel"] = inner_kernel;
    result["dense_kernel"] = dense_kernel;
    size_t stage = 0;
    for (const auto& [name, times] : stages.all()) {
      result["stages"][name] = times->json();
      result["stages"][name]["bytes"] = stage_bytes[stage++];
    }
    return result;
  }
};

Row run(const Settings& settings, int64_t context, int64_t budget) {
  Config config = settings.config;
  config.budget = budget;
  const Geometry geometry(context, config);
  Row row;
  row.context = context;
  row.config = config;
  row.rows = geometry.rows;
  row.stage_bytes = stage_bytes(settings, geometry);
  const Inputs inputs = make_inputs(settings, context, /*tokens_major=*/true);
  const int warm_ups = inputs.device().is_cpu() ? 1 : 3;
  const auto measured = [&](const Inputs& on, int repeats, const auto& attention) {
    measure(on, warm_ups, attention);
    return measure(on, repeats, attention);
  };
  row.lighthouse = measured(inputs, settings.repeats,
                            [&] { return attention(inputs.q, inputs.k, inputs.v, config); });
  {
    const Inputs rows = make_inputs(settings, row.rows, /*tokens_major=*/false);
    row.inner_kernel = attention_kernel(rows.q, rows.k, rows.v);
    row.inner = measured(rows, settings.repeats,
                         [&] { return dense_attention(rows.q, rows.k, rows.v, config.scale); });
  }
  if (config.local > 0) {
    row.near = measured(inputs, settings.repeats,
                        [&] { return local_attention(inputs.q, inputs.k, inputs.v, config); });
  }
  if (settings.documents > 0) {
    row.packed = measure_packed(settings, inputs, config, [&](const Inputs& on, const auto& f) {
      return measured(on, settings.repeats, f);
    });
  }
  row.stages = measure_stages(inputs, config, settings.repeats);
  if (config.scorer == Scorer::kDilated) {
    Settings side_by_side = settings;
    side_by_side.batch *= config.dilation;
    side_by_side.kv_heads = settings.heads;
    const int64_t length = (context + config.dilation - 1) / config.dilation;
    const Inputs sub = make_inputs(side_by_side, length, /*tokens_major=*/false);
    const at::NoGradGuard no_grad;
    Clock clock(inputs.device());
    const auto both = [&] {
      dense_attention(sub.q, sub.k, sub.v, config.scale);
      return dense_attention(sub.k, sub.q, sub.v, config.scale);
    };
    both();
    for (int i = 0; i < settings.repeats; ++i) clock.time(row.scorer_attention, both);
    clock.settle();
  }
  if (settings.dense) {
    row.dense_kernel = attention_kernel(inputs.q, inputs.k, inputs.v);
    const auto dense = [&] { return dense_attention(inputs.q, inputs.k, inputs.v, config.scale); };
    // Where it takes many seconds, on a CPU, a warm-up would show nothing.
    if (!inputs.device().is_cpu()) measure(inputs, 1, dense);
    row.dense = measure(inputs, settings.dense_repeats, dense);
  }
  return row;
}

int digits_of(double milliseconds) { return milliseconds < 10 ? 3 : milliseconds < 100 ? 1 : 0; }

std::string milliseconds(const Times& times) {
  const int digits = digits_of(times.median());
  return message(fixed(times.median(), digits), " (", fixed(times.lowest(), digits), "-",
                 fixed(times.highest(), digits), ")");
}

std::vector<std::string> start_of_line(const Row& row) {
  return {std::to_string(row.context), std::to_string(row.config.budget)};
}

void print_whole(const std::vector<Row>& rows) {
  constexpr double kMiB = 1 << 20;
  Table table{{"context", "budget", "rows", "", "dense ms", "lighthouse ms", "speed-up", "inner ms",
               "near ms", "overhead ms", "of both", "dense MiB", "lighthouse MiB"}};
  for (const Row& row : rows) {
    const auto line = [&](const char* pass, Times Measured::*times, bool memory) {
      const Times& lighthouse = row.lighthouse.*times;
      const double stock = row.stock(times);
      const double overhead = lighthouse.median() - stock;
      table.push_back(
          {std::to_string(row.context), std::to_string(row.config.budget), std::to_string(row.rows),
           pass, row.dense ? milliseconds((*row.dense).*times) : "-", milliseconds(lighthouse),
           row.dense ? fixed(((*row.dense).*times).median() / lighthouse.median(), 1, "x") : "-",
           milliseconds(row.inner.*times), row.near ? milliseconds((*row.near).*times) : "-",
           fixed(overhead, digits_of(overhead)), fixed(100 * overhead / stock, 1, " %"),
           memory && row.dense ? fixed(static_cast<double>(row.dense->peak_bytes) / kMiB, 0) : "",
           memory ? fixed(static_cast<double>(row.lighthouse.peak_bytes) / kMiB, 0) : ""});
    };
    line("forward", &Measured::forward, false);
    line("forward+backward", &Measured::both, true);
  }
  print_table(std::cout, table);
  std::cout
      << "\nMilliseconds: median (lowest-highest). Inner: stock attention alone, over as many rows "
         "as are gathered; near: stock attention inside the pieces, alone; overhead: everything "
         "else. MiB: peak memory besides q, k, v and the incoming gradient.\n";
}

void print_packed(const std::vector<Row>& rows, int64_t documents) {
  Table table{{"context", "budget", "rows", "", "lighthouse ms", "of one document", "inner ms",
               "near ms", "overhead ms", "of one document"}};
  for (const Row& row : rows) {
    const Packed& packed = *row.packed;
    const auto line = [&](const char* pass, Times Measured::*times) {
      const double whole = (packed.lighthouse.*times).median();
      const double one = (row.lighthouse.*times).median();
      const double overhead =
          whole - (packed.inner.*times).median() - (packed.near.*times).median();
      const double overhead_of_one = one - row.stock(times);
      table.push_back({std::to_string(row.context), std::to_string(row.config.budget),
                       std::to_string(packed.rows), pass, milliseconds(packed.lighthouse.*times),
                       fixed(whole / one, 2, "x"), milliseconds(packed.inner.*times),
                       milliseconds(packed.near.*times), fixed(overhead, digits_of(overhead)),
                       fixed(overhead_of_one, digits_of(overhead_of_one))});
    };
    line("forward", &Measured::forward);
    line("forward+backward", &Measured::both);
  }
  std::cout << "\nWith " << documents << " documents packed into each sequence:\n";
  print_table(std::cout, table);
}

void print_stages(const std::vector<Row>& rows, double copy) {
  Table times_table{{"context", "budget"}};
  Table bandwidths{{"context", "budget"}};
  for (Table* table : {&times_table, &bandwidths})
    for (const auto& [name, times] : rows.front().stages.all()) (*table)[0].emplace_back(name);
  for (const Row& row : rows) {
    times_table.push_back(start_of_line(row));
    bandwidths.push_back(start_of_line(row));
    double sum = 0;
    for (const auto& [name, times] : row.stages.all()) sum += times->median();
    size_t stage = 0;
    for (const auto& [name, times] : row.stages.all()) {
      const double median = times->median();
      times_table.back().push_back(fixed(median, digits_of(median), " ms ") +
                                   fixed(100 * median / sum, 0, " %"));
      const auto bytes = static_cast<double>(row.stage_bytes[stage++]);
      bandwidths.back().push_back(bytes == 0
                                      ? "-"
                                      : fixed(bytes / 1e6, 1, " MB ") +
                                            fixed(100 * bytes / (median / 1000) / copy, 0, " %"));
    }
  }
  std::cout << "\nThe stages (' is the backward pass), each alone, and its share of their sum:\n";
  print_table(std::cout, times_table);
  std::cout
      << "\nBytes that each stage must move, and its bandwidth as a share of a copy's, which is "
      << fixed(copy / 1e12, 3, " TB/s") << " on this machine:\n";
  print_table(std::cout, bandwidths);
}

void print(const std::vector<Row>& rows, int64_t documents, double copy) {
  print_whole(rows);
  if (documents > 0) print_packed(rows, documents);
  print_stages(rows, copy);
  std::cout << "\nStock attention ran on PyTorch's kernel";
  for (const Row& row : rows) {
    std::cout << (&row == rows.data() ? " " : "; ") << row.inner_kernel << " over " << row.rows
              << " rows";
    if (row.dense) std::cout << ", " << row.dense_kernel << " over " << row.context << " tokens";
  }
  std::cout << ".\n";
  for (const Row& row : rows) {
    if (row.config.scorer != Scorer::kDilated) continue;
    std::cout << "The dilated scorer at " << row.context << ": " << milliseconds(row.stages.score)
              << " ms, " << fixed(row.stages.score.median() / row.scorer_attention.median(), 2)
              << " times the two stock attentions that it is made of, "
              << milliseconds(row.scorer_attention) << " ms.\n";
  }
}

void bench_attention(Settings settings) {
  const Output json(settings.json);
  check_argument(kTypes.contains(settings.dtype), "--dtype is '", settings.dtype,
                 "'; it must be float32, float64, bfloat16 or float16");
  const at::Device device = train::find_device(settings.device, "--device");
  use_attention_kernel(settings.attention_kernel);
  at::globalContext().setDeterministicAlgorithms(settings.deterministic, /*warn_only=*/false);
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
    check_argument(settings.documents <= settings.contexts[i], "--documents is ",
                   settings.documents, "; it must be at most the ", settings.contexts[i],
                   " tokens of a context");
  }
  check_argument(settings.documents == 0 || settings.config.local > 0, "--documents is ",
                 settings.documents, ", but --local is 0; documents need pieces");
  at::set_num_threads(settings.threads);

  std::string attention;
  for_each_option(settings.config, [&](const Setting& setting, const auto& value) {
    attention += message(", ", setting.name, " ", to_text(value));
  });
  const std::string title =
      message(describe(device), ", ", settings.dtype, ", batch ", settings.batch, ", ",
              settings.heads, " heads on ", settings.kv_heads, " of ", settings.head_dim, attention,
              ", seed ", settings.seed, ", attention kernel ", settings.attention_kernel,
              settings.deterministic ? ", deterministic" : "", ", ", settings.repeats,
              " repeats, dense ", settings.dense_repeats);
  std::cout << title << "\n\n";

  std::vector<Row> rows;
  for (size_t i = 0; i < settings.contexts.size(); ++i) {
    std::cerr << "context " << settings.contexts[i] << ", budget " << budget(i) << " ...\n";
    rows.push_back(run(settings, settings.contexts[i], budget(i)));
  }
  const double copy = copy_bandwidth(device);
  print(rows, settings.documents, copy);
  if (!json) return;
  ordered_json all{
      {"title", title}, {"copy_bytes_per_second", copy}, {"rows", ordered_json::array()}};
  for (const Row& row : rows) all["rows"].push_back(row.json());
  json.write(all.dump(2) + '\n');
}

template <class Number>
void add_option(CLI::App& app, const std::string& name, const Setting& setting, Number& value) {
  app.add_option(name, value, setting.help)->default_str(to_text(value));
}
template <HasWords Enum>
void add_option(CLI::App& app, const std::string& name, const Setting& setting, Enum& value) {
  const auto set = [&value, name](const std::string& word) {
    value = parse_word<Enum>(word, name);
  };
  app.add_option_function<std::string>(name, set, message(setting.help, ": ", all_words<Enum>()))
      ->default_str(to_text(value));
}

}  // namespace

void add_bench_attention(CLI::App& bench) {
  CLI::App* attention = bench.add_subcommand(
      "attention",
      "Time dense and Lighthouse attention at several contexts, as a whole and stage by stage");
  const auto settings = std::make_shared<Settings>();
  Settings& s = *settings;
  const auto option = [&](const char* name, auto& value, const char* help) {
    return attention->add_option(name, value, help)->capture_default_str();
  };
  const CLI::Validator positive = integer(1);
  option("--context", s.contexts, "context lengths in tokens")->delimiter(',');
  option("--budget", s.budgets, "entries refined per level: one value, or one per context")
      ->delimiter(',');
  option("--batch", s.batch, "sequences")->check(positive);
  option("--heads", s.heads, "query heads")->check(positive);
  option("--kv-heads", s.kv_heads, "key/value heads")->check(positive);
  option("--head-dim", s.head_dim, "head dimension")->check(positive);
  option("--dtype", s.dtype, "float32, float64, bfloat16 or float16");
  option("--device", s.device, "cpu, cuda or cuda:N");
  option("--attention-kernel", s.attention_kernel,
         "kernel of PyTorch's attention: auto, cudnn, flash, efficient or math");
  attention->add_flag("--deterministic", s.deterministic, "use PyTorch's deterministic algorithms");
  for_each_option(s.config, [&](const Setting& setting, auto& value) {
    std::string name = message("--", setting.name);
    std::ranges::replace(name, '_', '-');
    add_option(*attention, name, setting, value);
  });
  option("--documents", s.documents,
         "also time Lighthouse with this many documents packed into each sequence; 0: none")
      ->check(integer(0));
  option("--repeats", s.repeats, "timed runs of Lighthouse")->check(positive);
  option("--dense-repeats", s.dense_repeats, "timed runs of dense attention")->check(positive);
  attention->add_flag("!--no-dense", s.dense, "skip dense attention");
  option("--threads", s.threads, "CPU threads")->check(integer(1, 1024));
  option("--seed", s.seed, "seed of the inputs")->check(integer(0));
  option("--json", s.json, "also write all figures to this file; - is standard output")
      ->check(output_file());
  attention->callback([settings] { bench_attention(*settings); });
}

}  // namespace lighthouse::app
