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

/// The files of a folder that hold its tensors.
std::set<std::string> weight_files(const fs::path& folder) {
  constexpr const char* kWhole = "model.safetensors";
  constexpr const char* kPickled = "pytorch_model.bin";
  const fs::path index = folder / message(kWhole, ".index.json");
  if (fs::exists(folder / kWhole)) return {kWhole};
  if (!fs::exists(index)) {
    std::string what =
        message("'", folder.string(), "' has neither ", kWhole, " nor ", index.filename().string());
    if (fs::exists(folder / kPickled) || fs::exists(folder / message(kPickled, ".index.json"))) {
      what +=
          message("; its ", kPickled, " is converted by\n  python -c \"from transformers import ",
                  "AutoModelForCausalLM as M; M.from_pretrained('", folder.string(),
                  "').save_pretrained('", folder.string(), "')\"");
    }
    throw std::runtime_error(what);
  }
  try {
    std::set<std::string> files;
    const auto map = nlohmann::json::parse(io::read_file(index)).at("weight_map");
    for (const auto& [name, file] : map.items()) files.insert(file.get<std::string>());
    return files;
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(message("'", index.string(), "' is not valid JSON with a weight_map ",
                                     "from tensors to files: ", error.what()));
  }
}

/// Leaves the one tensor of tied embeddings, of which a folder may have both names, or either.
void tie(std::map<std::string, at::Tensor>& tensors, const fs::path& folder) {
  const auto head = tensors.find("lm_head.weight");
  if (head == tensors.end()) return;
  const auto embedding = tensors.try_emplace("model.embed_tokens.weight", head->second).first;
  if (!at::equal(embedding->second, head->second)) {
    throw std::runtime_error(
        message("tie_word_embeddings is true, and in '", folder.string(),
                "' lm_head.weight is not model.embed_tokens.weight; with model.tie_word_embeddings "
                "= false in the recipe the model has both, as transformers loads it"));
  }
  tensors.erase(head);
}

}  // namespace

std::map<std::string, at::Tensor> read_weights(const fs::path& folder, bool tied) {
  std::map<std::string, at::Tensor> all;
  for (const std::string& file : weight_files(folder)) {
    for (auto& [name, tensor] : io::read_safetensors(folder / file).tensors) {
      // Older files hold the frequencies too, which follow from the config.
      if (!name.ends_with(".rotary_emb.inv_freq")) all[name] = tensor.to(at::kFloat);
    }
  }
  if (tied) tie(all, folder);
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
  using nlohmann::ordered_json;
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
