#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

/// Weights and tokenizers in a model's folder, as Hugging Face's transformers reads and writes
/// them.
namespace lighthouse::model {

/// The tensors of a folder, from model.safetensors or from the shards of
/// model.safetensors.index.json, in float32. Throws std::runtime_error naming the file or folder.
/// @param tied whether embeddings are: there is no lm_head.weight then, stored or not
std::map<std::string, at::Tensor> read_weights(const std::filesystem::path& folder, bool tied);

/// A tokenizer.json whose ids 0 to 255 are bytes.
std::string byte_tokenizer_json();

}  // namespace lighthouse::model
