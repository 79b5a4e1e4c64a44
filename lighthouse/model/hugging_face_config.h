#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "lighthouse/model/model_config.h"

/// The config.json of a model's folder, as Hugging Face's transformers reads and writes it.
namespace lighthouse::model {

/// The config.json of a model whose weights are stored in that type. `end_token` is the id that
/// ends a document; none where negative.
std::string to_config_json(const ModelConfig& config, int64_t max_position_embeddings,
                           int64_t end_token, const std::string& dtype = "float32");

/// Reads the config.json of a folder; what it does not say is what transformers takes for it. The
/// original context of rotary embedding is max_position_embeddings where nothing else is said.
/// Throws std::runtime_error naming the file, the key, its value and what it must be, where the
/// model is not a Llama, a Mistral or a Qwen2 as this library computes it.
ModelConfig read_config(const std::filesystem::path& folder);

}  // namespace lighthouse::model
