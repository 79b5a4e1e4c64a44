#include "lighthouse/model/base_model.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"

namespace lighthouse::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kTemplates = "additional_chat_templates";
constexpr const char* kContext = "max_position_embeddings";

/// By how their names begin.
constexpr std::array<std::string_view, 10> kHandedOn{"generation_config.json",
                                                     "tokenizer",
                                                     "special_tokens_map.json",
                                                     "added_tokens.json",
                                                     "vocab",
                                                     "merges.txt",
                                                     "tekken",
                                                     "chat_template",
                                                     "LICENSE",
                                                     "NOTICE"};

ordered_json read_json(const fs::path& file) {
  try {
    auto json = ordered_json::parse(io::read_file(file));
    if (json.is_object()) return json;
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(message("'", file.string(), "' is not valid JSON: ", error.what()));
  }
  throw std::runtime_error(message("'", file.string(), "' is not a JSON object"));
}

}  // namespace

std::vector<fs::path> files_of_base(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path file = entry.path().filename();
    const bool wanted = std::ranges::any_of(
        kHandedOn, [&](std::string_view name) { return file.string().starts_with(name); });
    if (wanted && entry.is_regular_file()) files.push_back(file);
  }
  if (fs::is_directory(folder / kTemplates)) {
    for (const auto& entry : fs::directory_iterator(folder / kTemplates)) {
      if (entry.is_regular_file()) files.push_back(kTemplates / entry.path().filename());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool has_tokenizer(const fs::path& folder) {
  return std::ranges::any_of(files_of_base(folder), [](const fs::path& file) {
    return file.string().starts_with("tokenizer") || file.string().starts_with("vocab");
  });
}

void copy_base(const fs::path& from, const fs::path& to) {
  fs::create_directories(to);
  std::vector<fs::path> files = files_of_base(from);
  files.emplace_back(kConfig);
  for (const fs::path& file : files) {
    fs::create_directories((to / file).parent_path());
    io::write_atomically(to / file, io::read_file(from / file));
  }
}

int64_t context_of_base(const fs::path& folder) {
  const ordered_json config = read_json(folder / kConfig);
  const auto found = config.find(kContext);
  return found != config.end() && found->is_number() ? found->get<int64_t>() : 0;
}

std::string merge_config(const fs::path& folder, const std::string& config) {
  ordered_json merged = read_json(folder / kConfig);
  // The class of a model of their own, which this is not, and other names of what `config` says.
  for (const char* key :
       {"auto_map", "rope_scaling", "original_max_position_embeddings", "_name_or_path"}) {
    merged.erase(key);
  }
  const ordered_json ours = ordered_json::parse(config);  // items() refers to it
  for (const auto& [key, value] : ours.items()) {
    const bool special = key.ends_with("_token_id");
    if (!special || !merged.contains(key) || merged.at(key).is_null()) merged[key] = value;
  }
  return merged.dump(2) + '\n';
}

std::string tokenizer_config_of_base(const fs::path& folder, int64_t context) {
  const fs::path file = folder / kTokenizerConfig;
  ordered_json config = read_json(file);
  const auto length = config.find("model_max_length");
  if (length == config.end() || !length->is_number() || length->get<double>() >= context) {
    return io::read_file(file);
  }
  *length = context;
  return config.dump(2) + '\n';
}

}  // namespace lighthouse::model
