#include <toml++/toml.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/model/hugging_face_config.h"
#include "lighthouse/run/recipe_fields.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::run {
namespace {

/// Whether the node is of the value's type; it is set then. A number may be an integer.
bool assign(const Value& value, const toml::node& node) {
  const auto take = [](const auto& found, auto& to) {
    if (found) to = *found;
    return found.has_value();
  };
  return std::visit(
      Overloaded{[&](bool* v) { return take(node.value_exact<bool>(), *v); },
                 [&](int64_t* v) { return take(node.value_exact<int64_t>(), *v); },
                 [&](double* v) { return node.is_number() && take(node.value<double>(), *v); },
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
                 [&](Paths* v) {
                   v->clear();
                   const toml::array* list = node.as_array();
                   if (list == nullptr) {
                     return take(node.value_exact<std::string>(), v->emplace_back());
                   }
                   for (const toml::node& item : *list) {
                     if (!take(item.value_exact<std::string>(), v->emplace_back())) return false;
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
  check_argument(node.is_table(), place(node.source()), name, " is of type ", message(node.type()),
                 "; it must be a table, [", name, "]");
  return *node.as_table();
}

constexpr const char* kPreset = "preset";

/// Sections and keys that a file or the command line sets.
using Given = std::set<std::pair<std::string, std::string>>;

/// Sets the fields of one section. `where` begins every message.
void set_field(const Section& section, std::string_view key, const toml::node& node,
               const std::string& where_key, const std::string& where_value, Given& given) {
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
    given.emplace(section.name, field.key);
    return;
  }
  check_argument(section.stage == nullptr || key != "scale", where_key, section.name,
                 " has the key 'scale'; it must have none: attention is scaled by head_dim^(-1/2) "
                 "in every stage, in evaluations and in the exported model");
  if (section.name == "model") known.emplace_back(kPreset);
  check_argument(false, where_key, section.name, " has no key '", key, "'; did you mean '",
                 nearest(key, known), "'?");
}

void set_fields(const Section& section, const toml::table& table, Given& given) {
  for (const auto& [key, node] : table) {
    if (section.name == "model" && key.str() == kPreset) continue;
    set_field(section, key.str(), node, place(key.source()), place(node.source()), given);
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
                                  std::holds_alternative<Paths*>(field.value) ||
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
                                      "'; did you mean '", nearest(given.section, known), "'?"));
}

/// Reads the model's preset, where one is named.
void read_preset(Recipe& recipe, const toml::table& root, const std::filesystem::path& file,
                 const std::vector<Override>& overrides, Given& given_keys) {
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
                   key.str(), "'; it can only have [model]");
    set_fields(model_section(recipe), as_table(value, "model"), given_keys);
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
  if (folder.empty()) return;
  try {
    recipe.model = model::read_config(folder);
  } catch (const std::exception& error) {
    throw std::invalid_argument(message("model.init_from: ", error.what()));
  }
}

/// A recipe of defaults with as many stages as the file has, whose sections are known then.
Recipe new_recipe(const toml::table& root) {
  const std::vector<std::string> known{"model", "data", "optimizer", "run", "parallel", "stage"};
  for (const auto& [key, node] : root) {
    check_argument(std::ranges::count(known, key.str()) > 0, place(key.source()),
                   "there is no section '", key.str(), "'; did you mean '",
                   nearest(key.str(), known), "'?");
    if (key.str() != "stage") as_table(node, key.str());
  }

  Recipe recipe;
  if (const toml::node* stages = root.get("stage")) {
    check_argument(stages->is_array_of_tables(), place(stages->source()), "stage is of type ",
                   message(stages->type()), "; it must be a list of tables, [[stage]]");
    recipe.stages.resize(stages->as_array()->size());
  }
  return recipe;
}

void set_sections(const std::vector<Section>& all, const toml::table& root, Given& given) {
  size_t stage = 0;
  for (const Section& section : all) {
    const auto node = section.stage ? root["stage"][stage++] : root[section.name];
    if (const toml::table* table = node.as_table()) set_fields(section, *table, given);
  }
}

/// A factor without the type of the scaling is Llama 3's, as in older recipes, which say what is
/// the default of its bound.
void set_rope_type(model::RopeScaling& scaling, const toml::table& root) {
  if (scaling.type != model::RopeType::kDefault || root["model"]["rope_type"]) return;
  if (scaling.factor != 1) scaling.type = model::RopeType::kLlama3;
  if (scaling.high_frequency == 4) scaling.high_frequency = 0;
}

/// What a stage has by default depends on its other fields: with pieces no layer needs to stay
/// dense, and the causal rule is the better one.
void set_defaults(StageRecipe& stage, bool dense_layers, bool selection, int64_t layers) {
  const bool pieces = stage.config.local > 0;
  if (selection && pieces) stage.config.selection = SelectionRule::kCausal;
  if (!dense_layers) return;
  if (pieces) stage.dense_layers.clear();
  // The list is for a model of any depth.
  std::erase_if(stage.dense_layers, [&](int64_t i) { return i < -layers || i >= layers; });
}

/// Where attention stays within documents.
void set_document_defaults(Recipe& recipe, const Given& given) {
  if (recipe.data.attention != data::Attention::kWithin) return;
  const bool whole_rows = recipe.model.rope_scaling.type == model::RopeType::kDynamic;
  if (!given.contains({"data", "positions"}) && !whole_rows) {
    recipe.data.positions = data::Positions::kDocument;
  }
  for (StageRecipe& stage : recipe.stages) {
    if (stage.documents_per_row == 0) stage.documents_per_row = default_documents(stage.context);
  }
}

}  // namespace

Recipe Recipe::parse(const std::string& toml, const std::string& name) {
  const toml::table root = parse_toml(toml, name);
  Recipe recipe = new_recipe(root);
  Given all;
  set_sections(sections(recipe), root, all);
  set_rope_type(recipe.model.rope_scaling, root);
  return recipe;
}

Recipe Recipe::read(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const toml::table root = parse_toml(io::read_file(file), file.string());
  const std::vector<Override> given(overrides.begin(), overrides.end());
  Given keys;
  Recipe recipe = new_recipe(root);
  const RunFolder run(file.has_parent_path() ? file.parent_path() : ".");
  const bool is_of_run = file.filename() == run.recipe().filename() && run.exists();
  read_preset(recipe, root, file, given, keys);
  // A run's own recipe has every size: it needs the folder no more.
  if (!is_of_run) read_init_from(recipe, root, given);
  const std::vector<Section> all = sections(recipe);
  set_sections(all, root, keys);
  set_rope_type(recipe.model.rope_scaling, root);
  if (is_of_run) recipe.run.out = run.path().string();  // a run is where it lies
  for (const Override& one : given) {
    if (one.section == "model" && one.key == kPreset) continue;
    const Section& section = find_section(one, all);
    set_field(section, one.key, one.node(section), one.where(), one.where(), keys);
  }
  // A run's own recipe says all; what it lacks was not there when it was written.
  const auto is_default = [&](size_t stage, const char* key) {
    return !is_of_run && !keys.contains({message("stage.", stage), key});
  };
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    set_defaults(recipe.stages[i], is_default(i, "dense_layers"), is_default(i, "selection"),
                 recipe.model.num_hidden_layers);
  }
  if (!is_of_run) set_document_defaults(recipe, keys);
  check_part(file.string(), [&] { recipe.validate(); });
  for (size_t i = 1; i < recipe.stages.size(); ++i) {
    StageRecipe& stage = recipe.stages[i];
    if (!is_default(i, "warmup_steps")) continue;
    stage.warmup_steps = default_warmup_steps(stage, recipe.stages[i - 1]);
  }
  return recipe;
}

}  // namespace lighthouse::run
