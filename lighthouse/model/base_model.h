#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

/// What a model that training begins with has besides its weights: tokenizer, ids of special
/// tokens, settings of generation, chat template, licence. Training changes none of it, so an
/// exported model has it too. All throw std::runtime_error naming the file that cannot be read or
/// written.
namespace lighthouse::model {

/// The files of it in a folder of Hugging Face's, relative to that, without config.json.
std::vector<std::filesystem::path> files_of_base(const std::filesystem::path& folder);

/// Whether a tokenizer is among them.
bool has_tokenizer(const std::filesystem::path& folder);

/// Copies them and config.json to another folder, which is made.
void copy_base(const std::filesystem::path& from, const std::filesystem::path& to);

/// The tokens of context that the folder's config.json says; 0 where it says nothing.
int64_t context_of_base(const std::filesystem::path& folder);

/// The folder's config.json with all that `config` (to_config_json) says, but for the ids of
/// special tokens, which are the folder's where it has them.
std::string merge_config(const std::filesystem::path& folder, const std::string& config);

/// The folder's tokenizer_config.json for texts of up to `context` tokens, if it had fewer.
std::string tokenizer_config_of_base(const std::filesystem::path& folder, int64_t context);

}  // namespace lighthouse::model
