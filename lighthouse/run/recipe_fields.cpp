#include "lighthouse/run/recipe_fields.h"

#include <algorithm>
#include <charconv>
#include <iomanip>
#include <optional>
#include <ostream>
#include <sstream>

#include "lighthouse/core/check.h"
#include "lighthouse/core/settings.h"

namespace lighthouse::run {
namespace {

using enum Decides;

constexpr Range kAny;
constexpr Range at_least(double least) { return {least}; }
constexpr Range above(double least) {
  return {least, std::numeric_limits<double>::infinity(), true};
}

template <HasWords Enum>
Word word_of(const char* name, Enum& value) {
  return {all_words<Enum>(), [&value] { return std::string(to_string(value)); },
          [&value, name](const std::string& word) { value = parse_word<Enum>(word, name); }};
}

std::vector<Field> model_fields(Recipe& recipe) {
  model::ModelConfig& m = recipe.model;
  model::RopeScaling& scaling = m.rope_scaling;
  return {
      {"init_from", &recipe.init_from, kAny,
       "folder of a model of Hugging Face's to begin with; '': none", kNothing},
      {"model_type", word_of("model_type", m.model_type), kAny,
       "whose decoder; a Qwen2 has biases of q, k and v"},
      {"vocab_size", &m.vocab_size, at_least(2), "of text 256: a byte is a token"},
      {"hidden_size", &m.hidden_size, at_least(1), "width of the residual stream"},
      {"intermediate_size", &m.intermediate_size, at_least(1), "width of SwiGLU"},
      {"num_hidden_layers", &m.num_hidden_layers, at_least(1), "layers"},
      {"num_attention_heads", &m.num_attention_heads, at_least(1), "query heads"},
      {"num_key_value_heads", &m.num_key_value_heads, at_least(1),
       "key/value heads; divides num_attention_heads"},
      {"head_dim", &m.head_dim, at_least(2), "dimension of a head; even"},
      {"rope_theta", &m.rope_theta, above(0), "base of the rotary embedding"},
      {"rope_type", word_of("rope_type", scaling.type), kAny, "how it is stretched"},
      {"rope_scaling_factor", &scaling.factor, above(0), "by which it is stretched"},
      {"rope_low_frequency", &scaling.low_frequency, above(0),
       "yarn, llama3: pairs of fewer turns are stretched"},
      {"rope_high_frequency", &scaling.high_frequency, at_least(0),
       "yarn, llama3: pairs of more turns are not; 0: 32, 4"},
      {"rope_original_context", &scaling.original_context, at_least(1),
       "tokens that turns are counted over; dynamic: beyond them"},
      {"rope_attention_factor", &scaling.attention_factor, at_least(0),
       "yarn: of cosines and sines; 0: 1 + ln(factor) / 10"},
      {"rope_truncate", &scaling.truncate, kAny, "yarn: bounds are whole pairs"},
      {"rms_norm_eps", &m.rms_norm_eps, above(0), "added to the mean square"},
      {"initializer_range", &m.initializer_range, above(0), "standard deviation of new matrices"},
      {"attention_bias", &m.attention_bias, kAny, "llama: biases of q, k, v and o"},
      {"mlp_bias", &m.mlp_bias, kAny, "llama: biases of gate, up and down"},
      {"tie_word_embeddings", &m.tie_word_embeddings, kAny, "one matrix embeds and projects out"},
  };
}

std::vector<Field> fields(data::Source& d) {
  return {
      {"path", &d.path, kAny, "files, folders, patterns: text, JSON lines, or token files",
       kNothing},
      {"text_field", &d.text_field, kAny, "of JSON lines (.jsonl, .ndjson; .gz, .zst)"},
      {"held_out_share", &d.held_out_share, {0, 1, true, true}, "of the text, never trained on"},
      {"documents", word_of("documents", d.documents), kAny,
       "what of text is one: a file or line, or all of a folder"},
      {"folder_depth", &d.folder_depth, at_least(1), "levels of such a folder below the path"},
      {"shuffle_block", &d.shuffle_block, at_least(0),
       "tokens of a block of the stream; blocks are shuffled too; 0: none"},
      {"attention", word_of("attention", d.attention), kAny,
       "across documents that share a row, or within each alone"},
      {"positions", word_of("positions", d.positions), kAny,
       "rotary positions count from the start of it; default: document where within"},
      {"end_token", &d.end_token, at_least(-1),
       "id that ends each document of token files; -1: unknown; text: always byte 0"},
  };
}

std::vector<Field> fields(OptimizerRecipe& o) {
  return {
      {"lr", &o.lr, above(0), "peak learning rate"},
      {"beta1", &o.beta1, {0, 1, false, true}, "decay rate of the mean gradient"},
      {"beta2", &o.beta2, {0, 1, false, true}, "decay rate of the mean squared gradient"},
      {"eps", &o.eps, above(0), "added to the root of that"},
      {"weight_decay", &o.weight_decay, at_least(0), "of matrices only, times the learning rate"},
      {"max_grad_norm", &o.max_grad_norm, above(0), "gradients are clipped to this norm"},
      {"warmup_steps", &o.warmup_steps, at_least(0), "steps of linear warm-up"},
      {"decay", word_of("decay", o.decay), kAny, "shape of the learning rate after the warm-up"},
      {"decay_share",
       &o.decay_share,
       {0, 1, true},
       "stable: the share of all steps or seconds in the final decay"},
      {"final_lr_share",
       &o.final_lr_share,
       {0, 1},
       "learning rate of the last step, as a share of lr"},
      {"z_loss", &o.z_loss, at_least(0), "weight of (log Z)^2 of the logits, in gradients only"},
      {"skip_grad_norm", &o.skip_grad_norm, at_least(0),
       "skip steps with a larger gradient norm; 0: never"},
      {"max_skipped_steps", &o.max_skipped_steps, at_least(0),
       "skipped steps, for that or a loss that is not finite, before the run ends"},
  };
}

std::vector<Field> fields(RunRecipe& r) {
  return {
      {"out", &r.out, kAny, "run folder", kNothing},
      {"device", &r.device, kAny, "cpu, cuda or cuda:N"},
      {"dtype", word_of("dtype", r.dtype), kAny, "type of computation; weights stay float32"},
      {"deterministic", &r.deterministic, kAny, "same bits from run to run on a GPU too; slower"},
      {"recompute_mlp", &r.recompute_mlp, kAny,
       "recompute MLPs in the backward pass: less memory, slower"},
      {"recompute_layers", &r.recompute_layers, kAny,
       "recompute whole layers in the backward pass: least memory, slowest", kNothing},
      {"cuda_graphs", &r.cuda_graphs, kAny,
       "replay steps as CUDA graphs: faster for small models, more memory", kNothing},
      {"seed", &r.seed, at_least(0), "seed of the initial weights and the order of the data"},
      {"eval_sequences", &r.eval_sequences, at_least(1), "held-out sequences per evaluation",
       kNothing},
      {"eval_every_steps", &r.eval_every_steps, at_least(0),
       "steps between evaluations within a stage; 0: none", kNothing},
      {"checkpoint_every_steps", &r.checkpoint_every_steps, at_least(1),
       "steps between checkpoints; each stage ends with one too", kNothing},
      {"keep_checkpoints", &r.keep_checkpoints, at_least(2), "newest checkpoints to keep",
       kNothing},
      {"keep_every_steps", &r.keep_every_steps, at_least(0),
       "keep the checkpoints of its multiples for good; 0: none", kNothing},
      {"log_every_steps", &r.log_every_steps, at_least(1), "steps between lines in metrics.jsonl",
       kNothing},
  };
}

std::vector<Field> fields(ParallelRecipe& p) {
  constexpr double kLongest = 1e6;  // of seconds, which are milliseconds to PyTorch
  return {
      {"context", &p.context, at_least(1), "ranks that share each sequence; divides the ranks",
       kNothing},
      {"exchange", word_of("exchange", p.exchange), kAny,
       "how those give one another what attention needs", kNothing},
      {"shard_optimizer", &p.shard_optimizer, kAny,
       "each rank keeps the optimizer's state for its part of the weights; false: for all of them",
       kNothing},
      {"timeout",
       &p.timeout,
       {0, kLongest, true},
       "seconds that a rank waits for another one",
       kNothing},
  };
}

bool is(const Setting& setting, std::string_view name) { return setting.name == name; }

Field field_of(const Setting& setting, int64_t& value) {
  return {setting.name, &value, at_least(static_cast<double>(setting.least)), setting.help,
          is(setting, "local") ? kNotDense : kLighthouse};
}
template <HasWords Enum>
Field field_of(const Setting& setting, Enum& value) {
  const bool has_two_defaults = is(setting, "selection");
  return {setting.name, word_of(setting.name, value), kAny,
          has_two_defaults ? "whose scores judge an entry; default: causal where local > 0"
                           : setting.help,
          kLighthouse};
}

std::vector<Field> fields(StageRecipe& s) {
  std::vector<Field> all{
      {"name", &s.name, kAny, "letters, digits, - and _"},
      {"steps", &s.steps, at_least(0), "optimizer steps"},
      {"seconds", &s.seconds, at_least(0),
       "seconds of training, in place of steps; evaluations and checkpoints do not count"},
      {"context", &s.context, at_least(1), "tokens per sequence"},
      {"batch", &s.batch, at_least(1), "sequences per step"},
      {"micro_batch", &s.micro_batch, at_least(0),
       "sequences per forward and backward pass; divides batch; 0: all"},
      {"warmup_steps", &s.warmup_steps, at_least(0),
       "steps of warm-up at its start; default: 20 where attention or context change"},
      {"attention", word_of("attention", s.attention), kAny, "attention of the stage"},
  };
  for_each_setting(s.config, [&](const Setting& setting, auto& value) {
    // Without the scale, which is the model's, and the shift of pieces, which is a layer's.
    if constexpr (!std::is_same_v<decltype(value), std::optional<double>&>) {
      if (!is(setting, "local_shift")) all.push_back(field_of(setting, value));
    }
  });
  const Field others[]{
      {"dense_layers", &s.dense_layers, kAny,
       "layers that stay dense; -1 is the last; default: none where local > 0", kNotDense},
      {"dense_share",
       &s.dense_share,
       {0, 1},
       "share of the steps that are dense, on shorter pieces"},
      {"dense_context", &s.dense_context, at_least(0), "tokens per such piece; divides context"},
      {"documents_per_row", &s.documents_per_row, at_least(0),
       "most documents of a sequence; default within them: 1 for 256 tokens, at least 16"},
  };
  all.insert(all.end(), std::begin(others), std::end(others));
  return all;
}

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out << '\\' << c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out << "\\u" << std::hex << std::setw(4) << std::setfill('0') << static_cast<int>(c);
    } else {
      out << c;
    }
  }
  return out.str() + '"';
}

/// The shortest digits that give the same number back.
std::string digits(double value) {
  char text[32];
  const auto end = std::to_chars(std::begin(text), std::end(text), value).ptr;
  const std::string shortest(std::begin(text), end);
  return shortest.find_first_of(".en") == std::string::npos ? shortest + ".0" : shortest;
}

using Number = std::optional<double>;

Number number_of(const Value& value) {
  return std::visit(Overloaded{[](const int64_t* v) -> Number { return static_cast<double>(*v); },
                               [](const double* v) -> Number { return *v; },
                               [](const void*) -> Number { return {}; },
                               [](const Word&) -> Number { return {}; }},
                    value);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Range& range) {
  const bool bounded = std::isfinite(range.least);
  if (bounded) out << (range.above ? "above " : "at least ") << range.least;
  if (!std::isfinite(range.most)) return out << (bounded ? "" : "finite");
  return out << " and " << (range.below ? "below " : "at most ") << range.most;
}

Section model_section(Recipe& recipe) { return {"model", model_fields(recipe)}; }

std::vector<Section> sections(Recipe& recipe) {
  std::vector<Section> all{model_section(recipe),
                           {"data", fields(recipe.data)},
                           {"optimizer", fields(recipe.optimizer)},
                           {"run", fields(recipe.run)},
                           {"parallel", fields(recipe.parallel)}};
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    all.push_back({message("stage.", i), fields(recipe.stages[i]), &recipe.stages[i]});
  }
  return all;
}

std::string type_name(const Value& value) {
  using Text = std::string;
  return std::visit(
      Overloaded{[](const bool*) -> Text { return "true or false"; },
                 [](const int64_t*) -> Text { return "an integer"; },
                 [](const double*) -> Text { return "a number"; },
                 [](const std::string*) -> Text { return "a string"; },
                 [](const std::vector<int64_t>*) -> Text { return "a list of integers"; },
                 [](const Paths*) -> Text { return "a string or a list of strings"; },
                 [](const Word& word) { return word.words; }},
      value);
}

void copy_value(const Value& from, const Value& to) {
  std::visit(Overloaded{[&](const Word& word) { word.set(std::get<Word>(from).get()); },
                        [&](auto* value) { *value = *std::get<decltype(value)>(from); }},
             to);
}

std::string to_text(const Value& value) {
  return std::visit(Overloaded{[](const bool* v) -> std::string { return *v ? "true" : "false"; },
                               [](const int64_t* v) { return std::to_string(*v); },
                               [](const double* v) { return digits(*v); },
                               [](const std::string* v) { return quoted(*v); },
                               [](const std::vector<int64_t>* v) {
                                 std::string list;
                                 for (const int64_t i : *v) {
                                   list += (list.empty() ? "" : ", ") + std::to_string(i);
                                 }
                                 return '[' + list + ']';
                               },
                               [](const Paths* v) {
                                 if (v->size() <= 1) return quoted(v->empty() ? "" : v->front());
                                 std::string list;
                                 for (const std::string& path : *v) {
                                   list += (list.empty() ? "" : ", ") + quoted(path);
                                 }
                                 return '[' + list + ']';
                               },
                               [](const Word& word) { return quoted(word.get()); }},
                    value);
}

void check_range(const Field& field, const std::string& section, const std::string& where) {
  const Number number = number_of(field.value);
  if (!number) return;
  const bool only_infinite = !std::isfinite(*number) && !std::isfinite(field.range.most) &&
                             std::isfinite(field.range.least);
  check_argument(field.range.holds(*number), where, section, ".", field.key, " is ",
                 to_text(field.value), "; it must be ", field.range,
                 only_infinite ? " and finite" : "");
}

}  // namespace lighthouse::run
