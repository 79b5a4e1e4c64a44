#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "lighthouse/model/llama.h"

/// Models as folders that Hugging Face's transformers reads and writes.
namespace lighthouse::model {

/// The config.json of a model whose weights are stored in that type. `end_token` is the id that
/// ends a document; none where negative.
std::string to_config_json(const LlamaConfig& config, int64_t max_position_embeddings,
                           int64_t end_token, const std::string& dtype = "float32");

/// Reads the config.json of a folder; what it does not say is what transformers takes for it. The
/// original context of rotary embedding is max_position_embeddings where nothing else is said.
/// Throws std::runtime_error naming the file, the key, its value and what it must be, where the
/// model is not a Llama, a Mistral or a Qwen2 as this library computes it.
LlamaConfig read_config(const std::filesystem::path& folder);

/// The tensors of a folder, from model.safetensors or from the shards of
/// model.safetensors.index.json, in float32. Throws std::runtime_error naming the file or folder.
/// @param tied whether embeddings are: there is no lm_head.weight then, stored or not
std::map<std::string, at::Tensor> read_weights(const std::filesystem::path& folder, bool tied);

/// A tokenizer.json whose ids 0 to 255 are bytes.
std::string byte_tokenizer_json();

}  // namespace lighthouse::model
