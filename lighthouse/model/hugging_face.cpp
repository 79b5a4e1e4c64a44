#include "lighthouse/model/hugging_face.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"

namespace lighthouse::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// A config.json, and what to say of it.
class ConfigFile {
 public:
  explicit ConfigFile(fs::path path) : path_(std::move(path)) {
    try {
      json_ = ordered_json::parse(io::read_file(path_));
    } catch (const nlohmann::json::exception& error) {
      throw std::runtime_error(message("'", path_.string(), "' is no JSON: ", error.what()));
    }
  }

  /// The key's value; `otherwise` where there is none, or null.
  template <class T>
  T get(const char* key, const T& otherwise) const {
    return get(json_, key, otherwise);
  }
  template <class T>
  T get(const ordered_json& from, const char* key, const T& otherwise) const {
    const auto found = from.find(key);
    if (found == from.end() || found->is_null()) return otherwise;
    try {
      return found->template get<T>();
    } catch (const nlohmann::json::exception&) {
      fail(key, *found, "of another type");
    }
  }
  template <class T>
  T require(const char* key) const {
    if (!json_.contains(key)) {
      throw std::runtime_error(message("'", path_.string(), "' has no ", key));
    }
    return get(key, T{});
  }
  /// Refuses any other value of a key.
  template <class T>
  void expect(const char* key, const T& value) const {
    if (get(key, value) != value) fail(key, json_.at(key), ordered_json(value).dump());
  }
  [[noreturn]] void fail(const char* key, const ordered_json& value,
                         const std::string& want) const {
    throw std::runtime_error(
        message("'", path_.string(), "' has ", key, " = ", value.dump(), "; it must be ", want));
  }

 private:
  fs::path path_;
  ordered_json json_;
};

void read_rope(const ConfigFile& file, LlamaConfig& config) {
  // One table in newer files; a base and a table of its scaling in older ones.
  const auto table = file.get("rope_parameters", file.get("rope_scaling", ordered_json::object()));
  config.rope_theta = file.get(table, "rope_theta", file.get("rope_theta", config.rope_theta));
  const auto type =
      file.get<std::string>(table, "rope_type", file.get<std::string>(table, "type", "default"));
  if (type == "default") return;
  if (type != "llama3") file.fail("rope_type", type, "\"default\" or \"llama3\"");
  RopeScaling& scaling = config.rope_scaling;
  scaling.factor = file.get(table, "factor", 8.0);
  scaling.low_frequency = file.get(table, "low_freq_factor", 1.0);
  scaling.high_frequency = file.get(table, "high_freq_factor", 4.0);
  scaling.original_context = file.get(table, "original_max_position_embeddings", int64_t{8192});
}

}  // namespace

std::string to_config_json(const LlamaConfig& c, int64_t max_position_embeddings,
                           int64_t end_token, const std::string& dtype) {
  ordered_json rope{{"rope_type", "default"}, {"rope_theta", c.rope_theta}};
  if (c.rope_scaling.factor != 1) {
    rope = {{"rope_type", "llama3"},
            {"rope_theta", c.rope_theta},
            {"factor", c.rope_scaling.factor},
            {"low_freq_factor", c.rope_scaling.low_frequency},
            {"high_freq_factor", c.rope_scaling.high_frequency},
            {"original_max_position_embeddings", c.rope_scaling.original_context}};
  }
  const ordered_json end = end_token < 0 ? ordered_json(nullptr) : ordered_json(end_token);
  return ordered_json{{"architectures", {"LlamaForCausalLM"}},
                      {"model_type", "llama"},
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
                      {"rope_theta", c.rope_theta},
                      {"rope_parameters", rope},
                      {"attention_bias", false},
                      {"mlp_bias", false},
                      {"attention_dropout", 0.0},
                      {"bos_token_id", nullptr},
                      {"eos_token_id", end},
                      {"pad_token_id", nullptr},
                      {"dtype", dtype},
                      {"torch_dtype", dtype}}
             .dump(2) +
         '\n';
}

LlamaConfig read_config(const fs::path& folder) {
  const ConfigFile file(folder / "config.json");
  file.expect<std::string>("model_type", "llama");
  file.expect<std::string>("hidden_act", "silu");
  file.expect("attention_bias", false);
  file.expect("mlp_bias", false);
  file.expect<ordered_json>("quantization_config", nullptr);
  LlamaConfig config;
  config.vocab_size = file.require<int64_t>("vocab_size");
  config.hidden_size = file.require<int64_t>("hidden_size");
  config.intermediate_size = file.require<int64_t>("intermediate_size");
  config.num_hidden_layers = file.require<int64_t>("num_hidden_layers");
  config.num_attention_heads = file.require<int64_t>("num_attention_heads");
  config.num_key_value_heads = file.get("num_key_value_heads", config.num_attention_heads);
  config.head_dim =
      file.get("head_dim", config.hidden_size / std::max<int64_t>(1, config.num_attention_heads));
  config.rms_norm_eps = file.get("rms_norm_eps", 1e-6);
  config.initializer_range = file.get("initializer_range", config.initializer_range);
  config.tie_word_embeddings = file.get("tie_word_embeddings", false);
  read_rope(file, config);
  config.validate();
  return config;
}

std::map<std::string, at::Tensor> read_weights(const fs::path& folder) {
  std::set<std::string> files{"model.safetensors"};
  const fs::path index = folder / "model.safetensors.index.json";
  if (!fs::exists(folder / "model.safetensors") && fs::exists(index)) {
    files.clear();
    try {
      const auto map = nlohmann::json::parse(io::read_file(index)).at("weight_map");
      for (const auto& [name, file] : map.items()) files.insert(file.get<std::string>());
    } catch (const nlohmann::json::exception& error) {
      throw std::runtime_error(message("'", index.string(), "' is no index: ", error.what()));
    }
  }
  std::map<std::string, at::Tensor> all;
  for (const std::string& file : files) {
    for (auto& [name, tensor] : io::read_safetensors(folder / file).tensors) {
      // Older files hold the frequencies too, which follow from the config.
      if (!name.ends_with(".rotary_emb.inv_freq")) all[name] = tensor.to(at::kFloat);
    }
  }
  return all;
}

std::string byte_tokenizer_json() {
  // The symbols of byte-level tokenizers: a printable byte is its own character of Latin-1, the
  // others are those from U+0100 on, in their order.
  const auto utf8 = [](int point) {
    if (point < 0x80) return std::string(1, static_cast<char>(point));
    return std::string{static_cast<char>(0xc0 | point >> 6),
                       static_cast<char>(0x80 | (point & 0x3f))};
  };
  ordered_json vocabulary = ordered_json::object();
  for (int byte = 0, others = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    vocabulary[utf8(printable ? byte : 256 + others++)] = byte;
  }
  const ordered_json level{{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  return ordered_json{{"version", "1.0"},
                      {"truncation", nullptr},
                      {"padding", nullptr},
                      {"added_tokens", ordered_json::array()},
                      {"normalizer", nullptr},
                      {"pre_tokenizer", level},
                      {"post_processor", nullptr},
                      {"decoder", level},
                      {"model",
                       {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false},
                        {"vocab", vocabulary},
                        {"merges", ordered_json::array()}}}}
             .dump(1) +
         '\n';
}

}  // namespace lighthouse::model
