#include "lighthouse/model/hugging_face_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <type_traits>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"

namespace lighthouse::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// What a value of a config.json must be, as a message says it.
template <class T>
constexpr const char* kTypeName = "an object";
template <>
constexpr const char* kTypeName<bool> = "true or false";
template <>
constexpr const char* kTypeName<int64_t> = "an integer";
template <>
constexpr const char* kTypeName<double> = "a number";
template <>
constexpr const char* kTypeName<std::string> = "a string";

template <class T>
bool is_a(const ordered_json& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value.is_boolean();
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return value.is_number() && std::floor(value.get<double>()) == value.get<double>();
  } else if constexpr (std::is_same_v<T, double>) {
    return value.is_number();
  } else if constexpr (std::is_same_v<T, std::string>) {
    return value.is_string();
  } else {
    return value.is_object();
  }
}

/// A config.json, and what to say of it.
class ConfigFile {
 public:
  explicit ConfigFile(fs::path path) : path_(std::move(path)) {
    try {
      json_ = ordered_json::parse(io::read_file(path_));
    } catch (const nlohmann::json::exception& error) {
      throw std::runtime_error(message("'", path_.string(), "' is not valid JSON: ", error.what()));
    }
    if (!json_.is_object()) {
      throw std::runtime_error(message("'", path_.string(), "' is not a JSON object"));
    }
  }

  bool has(const char* key) const { return json_.contains(key); }
  bool is_null(const char* key) const { return has(key) && json_.at(key).is_null(); }

  /// The key's value; `otherwise` where there is none, or null.
  template <class T>
  T get(const char* key, const T& otherwise) const {
    return get(json_, key, otherwise);
  }
  template <class T>
  T get(const ordered_json& from, const char* key, const T& otherwise) const {
    const auto found = from.find(key);
    if (found == from.end() || found->is_null()) return otherwise;
    if (!is_a<T>(*found)) fail(key, *found, kTypeName<T>);
    return found->template get<T>();
  }
  /// A number that a table must have.
  double require(const ordered_json& from, const char* key, const std::string& why) const {
    const auto found = from.find(key);
    if (found == from.end() || found->is_null()) fail_without(key, why);
    return get(from, key, 0.0);
  }
  /// What `act` gives; an error of its is one of this file.
  auto check(const auto& act) const {
    try {
      return act();
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(message("'", path_.string(), "': ", error.what()));
    }
  }
  [[noreturn]] void fail(const std::string& key, const ordered_json& value,
                         const std::string& want) const {
    throw std::runtime_error(
        message("'", path_.string(), "' has ", key, " = ", value.dump(), "; it must be ", want));
  }
  /// `why` ends the message.
  [[noreturn]] void fail_without(const std::string& key, const std::string& why) const {
    throw std::runtime_error(message("'", path_.string(), "' has no ", key, why));
  }
  /// Refuses any other value of a key. `why` ends the message.
  template <class T>
  void expect(const char* key, const T& value, const char* why = "") const {
    if (get(key, value) != value) {
      fail(key, json_.at(key), message(ordered_json(value).dump(), why));
    }
  }
  void expect_null(const char* key, const char* why) const {
    if (has(key) && !is_null(key)) fail(key, json_.at(key), message("null", why));
  }
  /// Refuses layers that do not attend to every earlier token.
  void expect_full_attention() const {
    const auto types = json_.find("layer_types");
    if (types == json_.end() || !types->is_array()) return;
    for (const ordered_json& type : *types) {
      if (type != "full_attention") fail("layer_types", type, "\"full_attention\" for every layer");
    }
  }

 private:
  fs::path path_;
  ordered_json json_;
};

constexpr const char* kNoWindow = ": attention here has no window";

/// Refuses a window of attention. Qwen2's layers from max_window_layers on have one where it is
/// used; a Mistral has one unless it is null.
void expect_no_window(const ConfigFile& file, const ModelConfig& config) {
  file.expect_full_attention();
  if (config.model_type == ModelType::kMistral) {
    if (!file.has("sliding_window")) {
      file.fail_without("sliding_window",
                        message(", which means 4096; it must be null", kNoWindow));
    }
    file.expect_null("sliding_window", kNoWindow);
  }
  if (config.model_type == ModelType::kQwen2 && !file.has("layer_types") &&
      !file.is_null("sliding_window") &&
      file.get("max_window_layers", int64_t{28}) < config.num_hidden_layers) {
    file.expect("use_sliding_window", false, kNoWindow);
  }
}

/// What transformers takes for keys that a config.json does not have. The original context is
/// max_position_embeddings.
ModelConfig defaults_of(ModelType type) {
  ModelConfig config;
  config.model_type = type;
  config.vocab_size = 32000;
  config.hidden_size = 4096;
  config.intermediate_size = 11008;
  config.num_hidden_layers = 32;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 32;
  config.rms_norm_eps = 1e-6;
  config.rope_scaling.original_context = 2048;
  if (type == ModelType::kMistral) {
    config.intermediate_size = 14336;
    config.num_key_value_heads = 8;
    config.rope_scaling.original_context = 131072;
  }
  if (type == ModelType::kQwen2) {
    config.vocab_size = 151936;
    config.intermediate_size = 22016;
    config.rope_scaling.original_context = 32768;
  }
  return config;
}

/// YaRN's attention factor, from what DeepSeek's models have in its place where it is absent; 0
/// where the factor alone tells, also one that a recipe sets.
double attention_factor(const ConfigFile& file, const ordered_json& table, double factor) {
  const auto amplitude = [&](double scale) {
    return factor <= 1 ? 1 : 0.1 * scale * std::log(factor) + 1;
  };
  const double scale = file.get(table, "mscale", 0.0);
  const double scale_all = file.get(table, "mscale_all_dim", 0.0);
  const bool both = scale != 0 && scale_all != 0;
  const bool absent = !table.contains("attention_factor") || table.at("attention_factor").is_null();
  if (absent && !both) return 0;
  const double given =
      file.get(table, "attention_factor", both ? amplitude(scale) / amplitude(scale_all) : 0.0);
  if (given <= 0) file.fail("attention_factor", given, "above 0");
  return given;
}

void read_rope(const ConfigFile& file, ModelConfig& config) {
  const auto none = ordered_json::object();
  // A base and a table of its scaling in older files, one table in newer ones. Where both tables
  // are there, transformers takes the older.
  ordered_json table = file.get("rope_scaling", none);
  if (table.empty()) table = file.get("rope_parameters", none);
  config.rope_theta = file.get(table, "rope_theta", file.get("rope_theta", config.rope_theta));
  RopeScaling& scaling = config.rope_scaling;
  const auto type =
      file.get<std::string>(table, "rope_type", file.get<std::string>(table, "type", "default"));
  scaling.type = file.check([&] { return parse_word<RopeType>(type, "rope_type"); });
  for (const auto& [key, value] : table.items()) {
    if (value.is_structured()) file.fail(key, value, "a number: all layers rotate alike");
  }
  const double rotated =
      file.get(table, "partial_rotary_factor", file.get("partial_rotary_factor", 1.0));
  if (rotated != 1) file.fail("partial_rotary_factor", rotated, "1");

  const int64_t context = file.get("max_position_embeddings", scaling.original_context);
  scaling.original_context = context;
  if (scaling.type == RopeType::kDefault) return;
  const std::string why = message("; rope_type \"", to_string(scaling.type), "\" needs one");
  const bool by_turns = scaling.type == RopeType::kYarn || scaling.type == RopeType::kLlama3;
  if (by_turns) {
    const char* key = "original_max_position_embeddings";
    scaling.original_context = file.get(key, file.get(table, key, context));
  }
  if (scaling.type == RopeType::kYarn && table.contains("factor") && table.at("factor").is_null()) {
    scaling.factor = static_cast<double>(context) / static_cast<double>(scaling.original_context);
  } else {
    scaling.factor = file.require(table, "factor", why);
  }
  if (scaling.type == RopeType::kLlama3) {
    scaling.low_frequency = file.require(table, "low_freq_factor", why);
    scaling.high_frequency = file.require(table, "high_freq_factor", why);
  }
  if (scaling.type != RopeType::kYarn) return;
  const auto nonzero = [](double value, double otherwise) {
    return value != 0 ? value : otherwise;
  };
  scaling.low_frequency = nonzero(file.get(table, "beta_slow", 0.0), 1);
  scaling.high_frequency = nonzero(file.get(table, "beta_fast", 0.0), 32);
  scaling.attention_factor = attention_factor(file, table, scaling.factor);
  scaling.truncate = !table.contains("truncate") || file.get(table, "truncate", false);
}

/// The table of config.json.
ordered_json rope_parameters(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  ordered_json table{{"rope_type", to_string(scaling.type)}, {"rope_theta", config.rope_theta}};
  if (scaling.type == RopeType::kDefault) return table;
  table["factor"] = scaling.factor;
  if (scaling.type == RopeType::kLlama3) {
    table["low_freq_factor"] = scaling.low_frequency;
    table["high_freq_factor"] = scaling.fast_turns();
  }
  if (scaling.type == RopeType::kYarn) {
    table["beta_slow"] = scaling.low_frequency;
    table["beta_fast"] = scaling.fast_turns();
    if (scaling.attention_factor != 0) table["attention_factor"] = scaling.attention_factor;
    table["truncate"] = scaling.truncate;
  }
  if (scaling.type == RopeType::kLlama3 || scaling.type == RopeType::kYarn) {
    table["original_max_position_embeddings"] = scaling.original_context;
  }
  return table;
}

constexpr std::array kArchitectures{"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"};
static_assert(kArchitectures.size() == kWords<ModelType>.size());

/// What a config.json says of biases and windows, which each model type has keys of its own for.
ordered_json keys_of_type(const ModelConfig& config) {
  switch (config.model_type) {
    case ModelType::kLlama:
      return ordered_json::object(
          {{"attention_bias", config.attention_bias}, {"mlp_bias", config.mlp_bias}});
    case ModelType::kMistral:
      return ordered_json::object({{"sliding_window", nullptr}});
    case ModelType::kQwen2:
      return ordered_json::object({{"use_sliding_window", false}, {"sliding_window", nullptr}});
  }
  return {};
}

}  // namespace

std::string to_config_json(const ModelConfig& c, int64_t max_position_embeddings, int64_t end_token,
                           const std::string& dtype) {
  const ordered_json rope = rope_parameters(c);
  const bool scaled = c.rope_scaling.type != RopeType::kDefault;
  if (c.rope_scaling.type == RopeType::kDynamic) {
    max_position_embeddings = c.rope_scaling.original_context;  // what it scales by
  }
  const ordered_json end = end_token < 0 ? ordered_json(nullptr) : ordered_json(end_token);
  const char* architecture = kArchitectures[static_cast<size_t>(c.model_type)];
  ordered_json json{{"architectures", ordered_json::array({architecture})},
                    {"model_type", to_string(c.model_type)},
                    {"vocab_size", c.vocab_size},
                    {"hidden_size", c.hidden_size},
                    {"intermediate_size", c.intermediate_size},
                    {"num_hidden_layers", c.num_hidden_layers},
                    {"num_attention_heads", c.num_attention_heads},
                    {"num_key_value_heads", c.num_key_value_heads},
                    {"head_dim", c.head_dim},
                    {"hidden_act", "silu"},
                    {"max_position_embeddings", max_position_embeddings},
                    {"initializer_range", c.initializer_range},
                    {"rms_norm_eps", c.rms_norm_eps},
                    {"tie_word_embeddings", c.tie_word_embeddings},
                    {"rope_parameters", rope},
                    // The same for readers that do not know the table.
                    {"rope_theta", c.rope_theta},
                    {"rope_scaling", scaled ? rope : ordered_json(nullptr)},
                    {"attention_dropout", 0.0},
                    {"bos_token_id", nullptr},
                    {"eos_token_id", end},
                    {"pad_token_id", nullptr},
                    {"dtype", dtype},
                    {"torch_dtype", dtype}};
  json.update(keys_of_type(c));
  return json.dump(2) + '\n';
}

ModelConfig read_config(const fs::path& folder) {
  if (!fs::is_directory(folder)) {
    throw std::runtime_error(message(
        "there is no folder '", folder.string(),
        "'; it must be one with the config.json and model.safetensors of a model (hf download "
        "ID --local-dir DIR makes one of a model of the hub)"));
  }
  const ConfigFile file(folder / "config.json");
  const auto type = file.get<std::string>("model_type", "");
  ModelConfig config =
      defaults_of(file.check([&] { return parse_word<ModelType>(type, "model_type"); }));
  if (const auto act = file.get<std::string>("hidden_act", "silu");
      act != "silu" && act != "swish") {
    file.fail("hidden_act", act, "\"silu\"");
  }
  file.expect("attention_dropout", 0.0, ": training here has no dropout");
  file.expect_null("quantization_config", ": weights must be of a floating-point type");
  file.expect_null("per_layer_config", ": all layers are alike");
  if (config.model_type == ModelType::kLlama) {
    config.attention_bias = file.get("attention_bias", false);
    config.mlp_bias = file.get("mlp_bias", false);
  }
  config.vocab_size = file.get("vocab_size", config.vocab_size);
  config.hidden_size = file.get("hidden_size", config.hidden_size);
  config.intermediate_size = file.get("intermediate_size", config.intermediate_size);
  config.num_hidden_layers = file.get("num_hidden_layers", config.num_hidden_layers);
  config.num_attention_heads = file.get("num_attention_heads", config.num_attention_heads);
  const bool grouped = !file.is_null("num_key_value_heads") &&
                       (file.has("num_key_value_heads") || config.model_type != ModelType::kLlama);
  config.num_key_value_heads = grouped ? file.get("num_key_value_heads", config.num_key_value_heads)
                                       : config.num_attention_heads;
  config.head_dim =
      file.get("head_dim", config.hidden_size / std::max<int64_t>(1, config.num_attention_heads));
  config.rms_norm_eps = file.get("rms_norm_eps", config.rms_norm_eps);
  config.initializer_range = file.get("initializer_range", config.initializer_range);
  config.tie_word_embeddings = file.get("tie_word_embeddings", config.tie_word_embeddings);
  read_rope(file, config);
  expect_no_window(file, config);
  file.check([&] { config.validate(); });
  return config;
}

}  // namespace lighthouse::model
