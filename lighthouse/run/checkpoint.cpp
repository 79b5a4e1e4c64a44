#include "lighthouse/run/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/io/checksum.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"
#include "lighthouse/io/sharded_tensors.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;

using Tensors = std::map<std::string, at::Tensor>;

// Format 2 has all fields of the recipe, 3 those that decide about the weights.
constexpr int64_t kOldest = 2, kFirstWithManifest = 4, kFormat = 4;
constexpr size_t kDigits = 16;  ///< of a checksum
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kRandom = "random.safetensors";
constexpr const char* kState = "state.json";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kChecksums = "checksums.txt";
constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kPartial = ".partial-";

/// The hash that checksums.txt held in formats 2 and 3.
std::string old_checksum(const fs::path& path) {
  const std::string text = io::read_file(path);
  std::string_view bytes = text;
  uint64_t hash = bytes.size();
  for (; !bytes.empty(); bytes.remove_prefix(std::min<size_t>(8, bytes.size()))) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), std::min<size_t>(8, bytes.size()));
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(hash));
  return digits.data();
}

std::string folder_name(int64_t step) {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "step-%08lld", static_cast<long long>(step));
  return name.data();
}

/// The step of a checkpoint of that name; -1 where it is the name of none.
int64_t step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return -1;
  const std::string digits = name.substr(kPrefix.size());
  if (digits.size() < 8 || digits.size() > 18 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return '0' <= c && c <= '9'; })) {
    return -1;
  }
  return std::stoll(digits);
}

std::vector<fs::path> entries(const fs::path& folder) {
  if (!fs::exists(folder)) return {};
  return {fs::directory_iterator(folder), fs::directory_iterator()};
}

/// Throws where a file that checksums.txt lists is not what was written. Returns their names.
std::set<std::string> verify(const fs::path& path) {
  const fs::path list = path / kChecksums;
  std::set<std::string> names;
  std::istringstream lines(io::read_file(list));
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    const size_t digits = line.find("  ");
    // A file's last line that has no end was cut short.
    if (digits != kDigits || lines.eof() || line.find('/') != std::string::npos) {
      throw std::runtime_error(message("'", list.string(), "' is damaged: line ", number,
                                       " is not a checksum and the name of a file"));
    }
    const std::string written = line.substr(0, kDigits), name = line.substr(kDigits + 2);
    const std::string found = io::xxh64(path / name);
    if (found != written && old_checksum(path / name) != written) {
      throw std::runtime_error(message("'", (path / name).string(),
                                       "' is damaged: its checksum is ", found, ", and ",
                                       kChecksums, " has '", written, "'"));
    }
    names.insert(name);
  }
  return names;
}

/// Where tensors lie: in which files, and the whole shape of each.
nlohmann::ordered_json manifest_of(const Tensors& tensors, const char* file) {
  auto shapes = nlohmann::ordered_json::object();
  for (const auto& [name, tensor] : tensors) shapes[name] = tensor.sizes().vec();
  return {{"files", {file}}, {"shapes", shapes}};
}

/// Reads what `manifest_of` describes.
/// @param find gives the path of a file of the checkpoint
Tensors read_tensors(const nlohmann::json& manifest,
                     const std::function<fs::path(const std::string&)>& find) {
  std::vector<fs::path> files;
  for (const auto& name : manifest.at("files")) files.push_back(find(name.get<std::string>()));
  return io::read_sharded_tensors(
      files, manifest.at("shapes").get<std::map<std::string, std::vector<int64_t>>>());
}

Checkpoint read_verified(const fs::path& path) {
  const std::set<std::string> verified = verify(path);
  const auto find = [&](const std::string& name) {
    if (!verified.contains(name)) {
      throw std::runtime_error(
          message("'", (path / kChecksums).string(), "' has no line for '", name, "'"));
    }
    return path / name;
  };
  const auto state = nlohmann::json::parse(io::read_file(find(kState)));
  const auto format = state.at("format").get<int64_t>();
  if (format < kOldest || format > kFormat) {
    throw std::runtime_error(message("'", (path / kState).string(), "' has format ", format,
                                     "; this version reads formats ", kOldest, " to ", kFormat));
  }
  Checkpoint checkpoint;
  state.at("step").get_to(checkpoint.step);
  state.at("position").get_to(checkpoint.position);
  state.at("seconds").get_to(checkpoint.seconds);
  checkpoint.skipped = state.value("skipped", int64_t{0});
  state.at("threads").get_to(checkpoint.threads);
  checkpoint.ranks = state.value("ranks", int64_t{1});
  state.at("corpus").get_to(checkpoint.corpus);
  checkpoint.recipe = Recipe::parse(state.at("recipe").get<std::string>(),
                                    message("the recipe in '", (path / kState).string(), "'"));
  checkpoint.stage_starts = checkpoint.recipe.by_seconds()
                                ? state.at("stage_starts").get<std::vector<int64_t>>()
                                : stage_starts(checkpoint.recipe, checkpoint.step);
  checkpoint.random = io::read_safetensors(find(kRandom)).tensors.at("cpu");
  if (format < kFirstWithManifest) {
    checkpoint.model = io::read_safetensors(find(kModel)).tensors;
    checkpoint.optimizer = io::read_safetensors(find(kOptimizer)).tensors;
  } else {
    const auto manifest = nlohmann::json::parse(io::read_file(find(kManifest)));
    checkpoint.model = read_tensors(manifest.at("model"), find);
    checkpoint.optimizer = read_tensors(manifest.at("optimizer"), find);
  }
  return checkpoint;
}

void write_files(const Checkpoint& checkpoint, const fs::path& folder) {
  fs::create_directories(folder);
  io::write_safetensors(folder / kModel, {checkpoint.model, {{"format", "pt"}}});
  io::write_safetensors(folder / kOptimizer, {checkpoint.optimizer, {}});
  io::write_safetensors(folder / kRandom, {{{"cpu", checkpoint.random}}, {}});
  const nlohmann::ordered_json state{
      {"format", kFormat},
      {"step", checkpoint.step},
      {"position", checkpoint.position},
      {"seconds", checkpoint.seconds},
      {"stage_starts", checkpoint.stage_starts},
      {"skipped", checkpoint.skipped},
      {"threads", checkpoint.threads},
      {"ranks", checkpoint.ranks},
      {"corpus", checkpoint.corpus},
      {"recipe", checkpoint.recipe.deciding_toml()},
  };
  io::write_atomically(folder / kState, state.dump(2) + '\n');
  const nlohmann::ordered_json manifest{
      {"model", manifest_of(checkpoint.model, kModel)},
      {"optimizer", manifest_of(checkpoint.optimizer, kOptimizer)},
  };
  io::write_atomically(folder / kManifest, manifest.dump(2) + '\n');
  std::string checksums;
  for (const char* name : {kModel, kOptimizer, kRandom, kState, kManifest}) {
    checksums += io::xxh64(folder / name) + "  " + name + '\n';
  }
  io::write_atomically(folder / kChecksums, checksums);
}

/// What to do about a checkpoint that cannot be read.
std::string remedy(const fs::path& path) {
  fs::path before;
  for (const fs::path& other : Checkpoints(path.parent_path()).list()) {
    if (step_of(other.filename()) < step_of(path.filename())) before = other;
  }
  if (before.empty()) return "there is no earlier checkpoint";
  return "the one before it is '" + before.string() + "' (train --resume-from, or --checkpoint)";
}

}  // namespace

std::vector<fs::path> Checkpoints::list() const {
  std::vector<fs::path> paths = entries(folder_);
  std::erase_if(paths, [](const fs::path& path) { return step_of(path.filename()) < 0; });
  std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) {
    return step_of(a.filename()) < step_of(b.filename());
  });
  return paths;
}

void Checkpoints::write(const Checkpoint& checkpoint, int64_t keep, int64_t keep_every) const {
  const std::string name = folder_name(checkpoint.step);
  const fs::path partial = folder_ / message(kPartial, name);
  fs::remove_all(partial);
  try {
    write_files(checkpoint, partial);
    io::rename_durably(partial, folder_ / name);
  } catch (...) {
    std::error_code ignored;  // what went wrong is what was thrown
    fs::remove_all(partial, ignored);
    throw;
  }

  const std::vector<fs::path> all = list();
  for (size_t i = 0; i + static_cast<size_t>(keep) < all.size(); ++i) {
    const bool for_good = keep_every > 0 && step_of(all[i].filename()) % keep_every == 0;
    if (!for_good) remove(all[i]);
  }
}

void Checkpoints::remove_partial() const {
  for (const fs::path& path : entries(folder_)) {
    if (path.filename().string().starts_with(kPartial)) fs::remove_all(path);
  }
}

void Checkpoints::remove_after(int64_t step) const {
  for (const fs::path& path : list()) {
    if (step_of(path.filename()) > step) remove(path);
  }
}

void Checkpoints::remove(const fs::path& path) const {
  // A process that dies on the way must not leave half of it under its name.
  const fs::path partial = folder_ / message(kPartial, path.filename().string());
  fs::remove_all(partial);
  io::rename_durably(path, partial);
  fs::remove_all(partial);
}

std::vector<int64_t> stage_starts(const Recipe& recipe, int64_t step) {
  std::vector<int64_t> starts;
  int64_t start = 0;
  for (const StageRecipe& stage : recipe.stages) {
    if (start >= step) break;
    starts.push_back(start);
    start += stage.steps;
  }
  return starts;
}

Checkpoint read_checkpoint(const fs::path& folder) {
  const fs::path path = io::normal_path(folder);
  try {
    return read_verified(path);
  } catch (const std::exception& error) {
    throw std::runtime_error(message("cannot read the checkpoint '", path.string(),
                                     "': ", error.what(), "; ", remedy(path)));
  }
}

void restore(const std::map<std::string, at::Tensor>& from,
             const std::map<std::string, at::Tensor>& into, const std::string& source) {
  const auto require = [&](bool condition, const auto&... parts) {
    if (!condition) throw std::runtime_error(message(source, ": the tensor '", parts...));
  };
  for (const auto& [name, tensor] : from) {
    require(into.contains(name), name, "' is not one of the model's");
  }
  for (const auto& [name, tensor] : into) {
    const auto found = from.find(name);
    require(found != from.end(), name, "' is missing");
    require(found->second.sizes() == tensor.sizes() &&
                found->second.scalar_type() == tensor.scalar_type(),
            name, "' is ", found->second.scalar_type(), ' ', found->second.sizes(), "; it must be ",
            tensor.scalar_type(), ' ', tensor.sizes());
    tensor.copy_(found->second);
  }
}

}  // namespace lighthouse::run
