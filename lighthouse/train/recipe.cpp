#include "lighthouse/train/recipe.h"

#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <iomanip>
#include <limits>
#include <numeric>
#include <optional>
#include <ostream>
#include <set>
#include <variant>

#include "lighthouse/core/check.h"
#include "lighthouse/core/geometry.h"
#include "lighthouse/io/file.h"
#include "lighthouse/model/hugging_face.h"

namespace lighthouse::train {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostTokens = 1e15;  ///< of a stage: sums over stages stay far from overflow

/// The numbers that a field may be.
struct Range {
  double least = -kInfinity;
  double most = kInfinity;
  bool above = false;  ///< `least` itself is out
  bool below = false;  ///< `most` itself is out

  bool holds(double value) const {
    return (above ? value > least : value >= least) && (below ? value < most : value <= most) &&
           std::isfinite(value);
  }
};
constexpr Range kAny;
constexpr Range at_least(double least) { return {least}; }
constexpr Range above(double least) { return {least, kInfinity, true}; }

std::ostream& operator<<(std::ostream& out, const Range& range) {
  if (range.least > -kInfinity) out << (range.above ? "above " : "at least ") << range.least;
  if (range.most == kInfinity) return out << (range.least > -kInfinity ? "" : "finite");
  return out << " and " << (range.below ? "below " : "at most ") << range.most;
}

/// A field that is one of some words in a file.
struct Word {
  const char* words;
  std::function<std::string()> get;
  std::function<void(const std::string&)> set;  ///< throws std::invalid_argument
};

using Value = std::variant<bool*, int64_t*, uint64_t*, double*, std::optional<double>*,
                           std::string*, std::vector<int64_t>*, Word>;

struct Field {
  std::string key;
  Value value;
  Range range;
  const char* help;
  bool of_lighthouse = false;  ///< without effect where the stage is dense
};

struct Section {
  std::string name;
  std::vector<Field> fields;
  const StageRecipe* stage = nullptr;  ///< where it is one
};

// The one list of fields: of it are made the defaults, the parser, the overrides, the help and the
// table.

std::vector<Field> fields(model::LlamaConfig& m, std::string& init_from) {
  model::RopeScaling& scaling = m.rope_scaling;
  return {
      {"init_from", &init_from, kAny,
       "folder of a Llama of Hugging Face's to begin with; '': none"},
      {"vocab_size", &m.vocab_size, at_least(256), "of text 256: a byte is a token"},
      {"hidden_size", &m.hidden_size, at_least(1), "width of the residual stream"},
      {"intermediate_size", &m.intermediate_size, at_least(1), "width of SwiGLU"},
      {"num_hidden_layers", &m.num_hidden_layers, at_least(1), "layers"},
      {"num_attention_heads", &m.num_attention_heads, at_least(1), "query heads"},
      {"num_key_value_heads", &m.num_key_value_heads, at_least(1), "divides the query heads"},
      {"head_dim", &m.head_dim, at_least(2), "of queries, keys and values; even"},
      {"rope_theta", &m.rope_theta, above(0), "base of the rotary embedding"},
      {"rope_scaling_factor", &scaling.factor, above(0), "Llama 3's for longer contexts; 1: none"},
      {"rope_low_frequency", &scaling.low_frequency, above(0), "fewer turns: stretched by it"},
      {"rope_high_frequency", &scaling.high_frequency, above(0), "more turns: not stretched"},
      {"rope_original_context", &scaling.original_context, at_least(1),
       "that turns are counted over"},
      {"rms_norm_eps", &m.rms_norm_eps, above(0), "added to the mean square"},
      {"initializer_range", &m.initializer_range, above(0), "standard deviation of new matrices"},
      {"tie_word_embeddings", &m.tie_word_embeddings, kAny, "one matrix embeds and projects out"},
  };
}

std::vector<Field> fields(DataRecipe& d) {
  return {
      {"path", &d.path, kAny, "file or folder of text, or of token files (.bin)"},
      {"held_out_share", &d.held_out_share, {0, 1, true, true}, "of the text, never trained on"},
  };
}

constexpr std::array kDecays{"linear", "cosine", "stable"};

void set_decay(OptimizerRecipe& optimizer, const std::string& word) {
  const auto* found = std::ranges::find(kDecays, word);
  check_argument(found != kDecays.end(), "decay is '", word,
                 "'; it must be 'linear', 'cosine' or 'stable'");
  optimizer.decay = static_cast<Decay>(found - kDecays.begin());
}

std::vector<Field> fields(OptimizerRecipe& o) {
  const Word decay{"linear, cosine, stable",
                   [&o] { return std::string(kDecays[static_cast<size_t>(o.decay)]); },
                   [&o](const std::string& word) { set_decay(o, word); }};
  return {
      {"lr", &o.lr, above(0), "peak learning rate"},
      {"beta1", &o.beta1, {0, 1, false, true}, "decay of the mean gradient"},
      {"beta2", &o.beta2, {0, 1, false, true}, "decay of the mean squared gradient"},
      {"eps", &o.eps, above(0), "added to its root"},
      {"weight_decay", &o.weight_decay, at_least(0), "of matrices, times the learning rate"},
      {"max_grad_norm", &o.max_grad_norm, above(0), "gradients are clipped to it"},
      {"warmup_steps", &o.warmup_steps, at_least(0), "of linear warm-up, from the first step on"},
      {"decay", decay, kAny, "of the learning rate after the warm-up"},
      {"decay_share", &o.decay_share, {0, 1, true}, "of all steps, at the end, where it is stable"},
      {"final_lr_share", &o.final_lr_share, {0, 1}, "of lr, reached at the last step"},
      {"z_loss", &o.z_loss, at_least(0), "times (log Z)^2 of the logits, in the gradient alone"},
      {"skip_grad_norm", &o.skip_grad_norm, at_least(0), "larger ones skip their step; 0: none"},
      {"max_skipped_steps", &o.max_skipped_steps, at_least(0),
       "by that or by a loss that is not finite; then the run stops"},
  };
}

void set_dtype(RunRecipe& run, const std::string& word) {
  check_argument(word == "float32" || word == "bfloat16", "dtype is '", word,
                 "'; it must be 'float32' or 'bfloat16'");
  run.bfloat16 = word == "bfloat16";
}

std::vector<Field> fields(RunRecipe& r) {
  const Word dtype{"float32, bfloat16", [&r] { return r.bfloat16 ? "bfloat16" : "float32"; },
                   [&r](const std::string& word) { set_dtype(r, word); }};
  return {
      {"out", &r.out, kAny, "the run's folder"},
      {"device", &r.device, kAny, "cpu, cuda or cuda:N"},
      {"dtype", dtype, kAny, "that the model computes in; weights are kept in float32"},
      {"deterministic", &r.deterministic, kAny, "the same bits on a GPU too, slower"},
      {"recompute_mlp", &r.recompute_mlp, kAny, "less memory, for a product more a layer"},
      {"seed", &r.seed, at_least(0), "of the initial model and the order of the data"},
      {"eval_sequences", &r.eval_sequences, at_least(1), "held-out sequences of an evaluation"},
      {"eval_every_steps", &r.eval_every_steps, at_least(0),
       "besides before and after each stage; 0: not"},
      {"checkpoint_every_steps", &r.checkpoint_every_steps, at_least(1),
       "besides after each stage"},
      {"keep_checkpoints", &r.keep_checkpoints, at_least(2), "the newest that are kept"},
      {"keep_every_steps", &r.keep_every_steps, at_least(0),
       "checkpoints of its multiples are kept for good; 0: none"},
      {"log_every_steps", &r.log_every_steps, at_least(1), "lines in metrics.jsonl"},
  };
}

void set_attention(StageRecipe& stage, const std::string& word) {
  check_argument(word == "dense" || word == "lighthouse", "attention is '", word,
                 "'; it must be 'dense' or 'lighthouse'");
  stage.lighthouse = word == "lighthouse";
}

std::vector<Field> fields(StageRecipe& s) {
  Config& a = s.attention;
  const Word attention{"dense, lighthouse", [&s] { return s.lighthouse ? "lighthouse" : "dense"; },
                       [&s](const std::string& word) { set_attention(s, word); }};
  const Word scorer{"norm, dilated", [&a] { return std::string(to_string(a.scorer)); },
                    [&a](const std::string& word) { a.scorer = parse_scorer(word); }};
  const Word selection{"published, causal", [&a] { return std::string(to_string(a.selection)); },
                       [&a](const std::string& word) { a.selection = parse_selection_rule(word); }};
  return {
      {"name", &s.name, kAny, "letters, digits, - and _"},
      {"steps", &s.steps, at_least(1), "steps of the optimizer"},
      {"context", &s.context, at_least(1), "tokens of a sequence"},
      {"batch", &s.batch, at_least(1), "sequences of a step"},
      {"micro_batch", &s.micro_batch, at_least(0), "sequences at a time; divides batch; 0: all"},
      {"attention", attention, kAny, "of the stage's steps"},
      {"levels", &a.levels, at_least(1), "levels of the pyramid", true},
      {"pooling_factor", &a.pooling_factor, at_least(2), "children of an entry", true},
      {"budget", &a.budget, at_least(1), "entries refined at each level", true},
      {"tile_budget", &a.tile_budget, at_least(1), "entries refined in each tile; divides budget",
       true},
      {"scorer", scorer, kAny, "what scores a token", true},
      {"dilation", &a.dilation, at_least(1), "interleaved sub-sequences of the dilated scorer",
       true},
      {"selection", selection, kAny, "whose scores judge an entry: its own, or the one before",
       true},
      {"scale", &a.scale, kAny, "of attention; head_dim^(-1/2) where there is none"},
      {"dense_layers", &s.dense_layers, kAny, "layers that stay dense; -1 is the last", true},
      {"dense_share", &s.dense_share, {0, 1}, "of the steps, dense and on shorter pieces"},
      {"dense_context", &s.dense_context, at_least(0), "tokens of such a piece; divides context"},
  };
}

/// All fields of a recipe; they point into it.
std::vector<Section> sections(Recipe& recipe) {
  std::vector<Section> all{{"model", fields(recipe.model, recipe.init_from)},
                           {"data", fields(recipe.data)},
                           {"optimizer", fields(recipe.optimizer)},
                           {"run", fields(recipe.run)}};
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    all.push_back({message("stage.", i), fields(recipe.stages[i]), &recipe.stages[i]});
  }
  return all;
}

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

const char* type_name(const Value& value) {
  return std::visit(Overloaded{[](const bool*) { return "true or false"; },
                               [](const int64_t*) { return "an integer"; },
                               [](const uint64_t*) { return "an integer"; },
                               [](const double*) { return "a number"; },
                               [](const std::optional<double>*) { return "a number"; },
                               [](const std::string*) { return "a string"; },
                               [](const std::vector<int64_t>*) { return "a list of integers"; },
                               [](const Word& word) { return word.words; }},
                    value);
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

/// As in a file; empty for a number that is not given.
std::string to_text(const Value& value) {
  return std::visit(
      Overloaded{[](const bool* v) -> std::string { return *v ? "true" : "false"; },
                 [](const int64_t* v) { return std::to_string(*v); },
                 [](const uint64_t* v) { return std::to_string(*v); },
                 [](const double* v) { return digits(*v); },
                 [](const std::optional<double>* v) { return *v ? digits(**v) : std::string(); },
                 [](const std::string* v) { return quoted(*v); },
                 [](const std::vector<int64_t>* v) {
                   std::string list;
                   for (const int64_t i : *v) {
                     list += (list.empty() ? "" : ", ") + std::to_string(i);
                   }
                   return '[' + list + ']';
                 },
                 [](const Word& word) { return quoted(word.get()); }},
      value);
}

bool in_range(const Field& field) {
  using Number = std::optional<double>;
  const auto number =
      std::visit(Overloaded{[](const int64_t* v) -> Number { return static_cast<double>(*v); },
                            [](const uint64_t* v) -> Number { return static_cast<double>(*v); },
                            [](const double* v) -> Number { return *v; },
                            [](const std::optional<double>* v) -> Number { return *v; },
                            [](const void*) -> Number { return {}; },
                            [](const Word&) -> Number { return {}; }},
                 field.value);
  return !number || field.range.holds(*number);
}

void check_range(const Field& field, const std::string& section, const std::string& where = "") {
  check_argument(in_range(field), where, section, ".", field.key, " is ", to_text(field.value),
                 "; it must be ", field.range);
}

/// Whether the node is of the value's type; it is set then. A number may be an integer.
bool assign(const Value& value, const toml::node& node) {
  const auto take = [](const auto& found, auto& to) {
    if (found) to = *found;
    return found.has_value();
  };
  return std::visit(
      Overloaded{[&](bool* v) { return take(node.value_exact<bool>(), *v); },
                 [&](int64_t* v) { return take(node.value_exact<int64_t>(), *v); },
                 [&](uint64_t* v) {
                   const auto found = node.value_exact<int64_t>();
                   return found.value_or(-1) >= 0 && take(found, *v);
                 },
                 [&](double* v) { return node.is_number() && take(node.value<double>(), *v); },
                 [&](std::optional<double>* v) {
                   return node.is_number() && take(node.value<double>(), *v);
                 },
                 [&](std::string* v) { return take(node.value_exact<std::string>(), *v); },
                 [&](std::vector<int64_t>* v) {
                   const toml::array* list = node.as_array();
                   if (list == nullptr) return false;
                   v->clear();
                   for (const toml::node& item : *list) {
                     if (!take(item.value_exact<int64_t>(), v->emplace_back())) return false;
                   }
                   return true;
                 },
                 [&](const Word& word) {
                   const auto found = node.value_exact<std::string>();
                   if (found) word.set(*found);
                   return found.has_value();
                 }},
      value);
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, change});
    }
  }
  return row.back();
}

std::string nearest(std::string_view name, const std::vector<std::string>& known) {
  return *std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
    return edit_distance(name, a) < edit_distance(name, b);
  });
}

std::string place(const toml::source_region& source) {
  return message(source.path ? *source.path : "", ":", source.begin.line, ":", source.begin.column,
                 ": ");
}

toml::table parse_toml(const std::string& text, const std::string& name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    throw std::invalid_argument(place(error.source()) + std::string(error.description()));
  }
}

const toml::table& as_table(const toml::node& node, std::string_view name) {
  check_argument(node.is_table(), place(node.source()), name, " is a ", message(node.type()),
                 "; it must be a table, [", name, "]");
  return *node.as_table();
}

constexpr const char* kPreset = "preset";

/// Sets the fields of one section. `where` begins every message.
void set_field(const Section& section, std::string_view key, const toml::node& node,
               const std::string& where_key, const std::string& where_value) {
  std::vector<std::string> known;
  for (const Field& field : section.fields) {
    known.push_back(field.key);
    if (field.key != key) continue;
    try {
      check_argument(assign(field.value, node), field.key, " is of type ", message(node.type()),
                     "; it must be ", type_name(field.value));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(message(where_value, section.name, ": ", error.what()));
    }
    check_range(field, section.name, where_value);
    return;
  }
  if (section.name == "model") known.emplace_back(kPreset);
  check_argument(false, where_key, section.name, " has no key '", key, "'; the nearest is '",
                 nearest(key, known), "'");
}

void set_fields(const Section& section, const toml::table& table) {
  for (const auto& [key, node] : table) {
    if (section.name == "model" && key.str() == kPreset) continue;
    set_field(section, key.str(), node, place(key.source()), place(node.source()));
  }
}

/// "section.key=value" or "stage.NAME.key=value" of a command line.
struct Override {
  std::string text;
  std::string section;  ///< "stage.NAME" for a stage
  std::string key;
  toml::table value;              ///< under the key "value"
  toml::value<std::string> bare;  ///< as it stands: a string need not be quoted here

  explicit Override(const std::string& given) : text(given) {
    const size_t equals = text.find('=');
    const size_t dot = text.rfind('.', equals);
    check_argument(equals != std::string::npos && dot != std::string::npos, "--set ", text,
                   ": it must be section.key=value, like optimizer.lr=1e-3 or stage.0.steps=10");
    section = text.substr(0, dot);
    key = text.substr(dot + 1, equals - dot - 1);
    bare = text.substr(equals + 1);
    try {
      value = toml::parse("value = " + *bare);
    } catch (const toml::parse_error&) {
      value.insert("value", *bare);
    }
  }
  const toml::node& node() const { return *value.get("value"); }
  /// For a field of the section: run.out=2026 is a string, though 2026 is a number.
  const toml::node& node(const Section& of) const {
    const bool is_text = std::ranges::any_of(of.fields, [&](const Field& field) {
      return field.key == key && (std::holds_alternative<std::string*>(field.value) ||
                                  std::holds_alternative<Word>(field.value));
    });
    return is_text && node().is_value() && !node().is_string() ? bare : node();
  }
  std::string where() const { return "--set " + text + ": "; }
};

/// The section that an override is about.
const Section& find_section(const Override& given, const std::vector<Section>& all) {
  std::vector<std::string> known;
  for (const Section& section : all) {
    known.push_back(section.stage ? "stage." + section.stage->name : section.name);
    if (given.section == section.name || given.section == known.back()) return section;
  }
  throw std::invalid_argument(message(given.where(), "there is no section '", given.section,
                                      "'; the nearest is '", nearest(given.section, known), "'"));
}

/// Reads the model's preset, where one is named.
void read_preset(Recipe& recipe, const toml::table& root, const std::filesystem::path& file,
                 const std::vector<Override>& overrides) {
  const toml::node* node = root["model"][kPreset].node();
  std::string where = node ? place(node->source()) : "";
  for (const Override& given : overrides) {
    if (given.section != "model" || given.key != kPreset) continue;
    node = &given.node();
    where = given.where();
  }
  if (node == nullptr) return;
  check_argument(node->is_string(), where, "model.preset is of type ", message(node->type()),
                 "; it must be a string");
  const std::filesystem::path path = file.parent_path() / node->value_or(std::string());
  std::string text;
  try {
    text = io::read_file(path);
  } catch (const std::exception& error) {
    throw std::invalid_argument(message(where, "model.preset: ", error.what()));
  }
  const toml::table preset = parse_toml(text, path.string());
  for (const auto& [key, value] : preset) {
    check_argument(key.str() == "model", place(key.source()), "a preset has no section '",
                   key.str(), "'; it must have [model] alone");
    const Section section{"model", fields(recipe.model, recipe.init_from)};
    set_fields(section, as_table(value, "model"));
  }
}

/// Reads the sizes of the model to begin with, where one is named.
void read_init_from(Recipe& recipe, const toml::table& root,
                    const std::vector<Override>& overrides) {
  const auto in_file = root["model"]["init_from"].value<std::string>();
  std::string folder = in_file.value_or("");
  for (const Override& given : overrides) {
    if (given.section == "model" && given.key == "init_from") folder = *given.bare;
  }
  // A run's own recipe has every size: it goes on without the folder.
  const toml::table* model = root["model"].as_table();
  if (folder.empty() ||
      (model != nullptr && model->size() >= fields(recipe.model, folder).size())) {
    return;
  }
  try {
    recipe.model = model::read_config(folder);
  } catch (const std::exception& error) {
    throw std::invalid_argument(message("model.init_from: ", error.what()));
  }
}

/// The error's message, after what it is about.
template <class Check>
void check_part(const std::string& part, const Check& check) {
  try {
    check();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(part + ": " + error.what());
  }
}

void validate_stage(const StageRecipe& stage, int64_t layers) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  };
  check_argument(!stage.name.empty() && std::ranges::all_of(stage.name, is_letter), "name is '",
                 stage.name, "'; it must be of letters, digits, - and _");
  check_argument(stage.micro_batch == 0 || stage.batch % stage.micro_batch == 0, "micro_batch is ",
                 stage.micro_batch, "; it must divide batch, which is ", stage.batch);
  const double tokens = static_cast<double>(stage.steps) * static_cast<double>(stage.batch) *
                        static_cast<double>(stage.context);
  check_argument(tokens <= kMostTokens, "steps * batch * context is ", tokens,
                 "; it must be at most ", kMostTokens);
  check_argument(stage.dense_share == 0 ||
                     (stage.dense_context > 0 && stage.context % stage.dense_context == 0),
                 "dense_context is ", stage.dense_context, "; with a dense_share of ",
                 stage.dense_share, " it must divide context, which is ", stage.context);
  for (const int64_t layer : stage.dense_layers) {
    check_argument(-layers <= layer && layer < layers, "dense_layers has ", layer, "; with ",
                   layers, " layers it must be from ", -layers, " to ", layers - 1);
  }
  stage.attention.validate();
  // Where a tile has no root, attention is dense.
  if (stage.lighthouse && Geometry::tiles_fit(stage.context, stage.attention)) {
    Geometry(stage.context, stage.attention);
  }
}

/// Whether a stage computes Lighthouse: where it cannot pay, it is dense (as nn::Attention has it).
bool uses_lighthouse(const StageRecipe& stage) {
  return stage.lighthouse && Geometry::tiles_fit(stage.context, stage.attention) &&
         Geometry(stage.context, stage.attention).rows < stage.context;
}

/// What will run otherwise than the recipe seems to say, a sentence each.
std::vector<std::string> notes_of(const Recipe& recipe) {
  std::vector<std::string> notes;
  for (const StageRecipe& stage : recipe.stages) {
    const auto add = [&](const auto&... parts) {
      notes.push_back(message("stage '", stage.name, "' ", parts...));
    };
    if (!stage.lighthouse && stage.attention != Config{}) {
      add("is dense, and its settings of Lighthouse have no effect");
    }
    if (!stage.lighthouse || uses_lighthouse(stage)) continue;
    if (Geometry::tiles_fit(stage.context, stage.attention)) {
      add("will be dense: the gathered sequence would have ",
          Geometry(stage.context, stage.attention).rows, " rows for ", stage.context, " tokens");
    } else {
      add("will be dense: a budget of ", stage.attention.budget, " has more tiles (of ",
          stage.attention.tile_budget, ") than ", stage.context, " tokens have roots");
    }
  }
  if (recipe.optimizer.warmup_steps >= recipe.total_steps()) {
    notes.push_back(message("the learning rate only warms up: optimizer.warmup_steps is ",
                            recipe.optimizer.warmup_steps, " of ", recipe.total_steps(), " steps"));
  }
  return notes;
}

}  // namespace

Recipe Recipe::read(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const toml::table root = parse_toml(io::read_file(file), file.string());
  const std::vector<Override> given(overrides.begin(), overrides.end());
  const std::vector<std::string> known{"model", "data", "optimizer", "run", "stage"};
  for (const auto& [key, node] : root) {
    check_argument(std::ranges::count(known, key.str()) > 0, place(key.source()),
                   "there is no section '", key.str(), "'; the nearest is '",
                   nearest(key.str(), known), "'");
    if (key.str() != "stage") as_table(node, key.str());
  }

  Recipe recipe;
  if (const toml::node* stages = root.get("stage")) {
    check_argument(stages->is_array_of_tables(), place(stages->source()), "stage is a ",
                   message(stages->type()), "; it must be a list of tables, [[stage]]");
    recipe.stages.resize(stages->as_array()->size());
  }
  read_preset(recipe, root, file, given);
  read_init_from(recipe, root, given);
  const std::vector<Section> all = sections(recipe);
  size_t stage = 0;
  for (const Section& section : all) {
    const auto node = section.stage ? root["stage"][stage++] : root[section.name];
    if (const toml::table* table = node.as_table()) set_fields(section, *table);
  }
  for (const Override& one : given) {
    if (one.section == "model" && one.key == kPreset) continue;
    const Section& section = find_section(one, all);
    set_field(section, one.key, one.node(section), one.where(), one.where());
  }
  check_part(file.string(), [&] { recipe.validate(); });
  return recipe;
}

void Recipe::validate() const {
  Recipe copy = *this;
  for (const Section& section : sections(copy)) {
    for (const Field& field : section.fields) check_range(field, section.name);
  }
  check_part("model", [&] { model.validate(); });
  check_argument(!data.path.empty(), "data.path is empty; it must be a file or folder of text");
  check_argument(!run.out.empty(), "run.out is empty; it must be a folder");
  check_argument(!stages.empty(), "there are 0 stages; there must be at least one [[stage]]");
  std::set<std::string> names;
  for (const StageRecipe& stage : stages) {
    check_part("stage '" + stage.name + "'",
               [&] { validate_stage(stage, model.num_hidden_layers); });
    check_argument(names.insert(stage.name).second, "two stages have the name '", stage.name,
                   "'; every stage must have its own");
  }
}

int64_t Recipe::total_steps() const {
  int64_t steps = 0;
  for (const StageRecipe& stage : stages) steps += stage.steps;
  return steps;
}

std::string Recipe::to_toml() const {
  Recipe copy = *this;
  std::ostringstream out;
  for (const Section& section : sections(copy)) {
    out << (section.stage ? "[[stage]]" : '[' + section.name + ']') << '\n';
    for (const Field& field : section.fields) {
      const std::string text = to_text(field.value);
      if (!text.empty()) out << field.key << " = " << text << '\n';
    }
    out << '\n';
  }
  return out.str();
}

void print(std::ostream& out, const Recipe& recipe) {
  constexpr int kKey = 26;
  Recipe copy = recipe;
  const auto line = [&](const std::string& key, const std::string& text, const char* help) {
    out << "  " << std::left << std::setw(kKey) << key << std::setw(kKey) << text << " " << help
        << '\n';
  };
  for (const Section& section : sections(copy)) {
    out << section.name << '\n';
    for (const Field& field : section.fields) {
      if (field.of_lighthouse && !section.stage->lighthouse) continue;
      const std::string text = to_text(field.value);
      line(field.key, text.empty() ? "none" : text, field.help);
    }
  }
  out << "\nparameters: " << recipe.model.num_parameters() << ", steps: " << recipe.total_steps()
      << "\n\n"
      << std::right << std::setw(16) << "stage" << std::setw(12) << "attention" << std::setw(9)
      << "steps" << std::setw(9) << "context" << std::setw(7) << "batch" << std::setw(15)
      << "tokens" << std::setw(9) << "rows S" << std::setw(7) << "S/N" << '\n';
  for (const StageRecipe& stage : recipe.stages) {
    const bool lighthouse = uses_lighthouse(stage);
    out << std::setw(16) << stage.name << std::setw(12) << (lighthouse ? "lighthouse" : "dense")
        << std::setw(9) << stage.steps << std::setw(9) << stage.context << std::setw(7)
        << stage.batch << std::setw(15) << stage.steps * stage.batch * stage.context;
    if (lighthouse) {
      const int64_t rows = Geometry(stage.context, stage.attention).rows;
      out << std::setw(9) << rows << std::setw(7) << std::fixed << std::setprecision(3)
          << static_cast<double>(rows) / static_cast<double>(stage.context);
    }
    out << '\n';
  }
  for (const std::string& note : notes_of(recipe)) out << "note: " << note << '\n';
}

std::string describe_fields() {
  Recipe defaults;
  defaults.stages.resize(1);
  std::ostringstream out;
  for (const Section& section : sections(defaults)) {
    for (const Field& field : section.fields) {
      const std::string key = message(section.name, ".", field.key);
      const std::string text = to_text(field.value);
      out << "  " << std::left << std::setw(32) << key << ' ' << std::setw(16)
          << (text.empty() ? "none" : text) << ' ' << field.help;
      if (std::holds_alternative<Word>(field.value)) out << " (" << type_name(field.value) << ')';
      out << '\n';
    }
  }
  return out.str();
}

}  // namespace lighthouse::train
