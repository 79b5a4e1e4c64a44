#include "lighthouse/run/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFormat = 3, kOldest = 2;  ///< the older one has all fields of the recipe
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kRandom = "random.safetensors";
constexpr const char* kState = "state.json";
constexpr const char* kChecksums = "checksums.txt";
constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kPartial = ".partial-";

/// A hash of the bytes. Every round maps its 64 bits one to one, so no two texts that differ in one
/// 8-byte word alone have the same.
uint64_t checksum(std::string_view bytes) {
  uint64_t hash = bytes.size();
  for (; !bytes.empty(); bytes.remove_prefix(std::min<size_t>(8, bytes.size()))) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), std::min<size_t>(8, bytes.size()));
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

/// The lines of kChecksums for what is in that folder.
std::array<std::string, 4> checksum_lines(const fs::path& folder) {
  std::array<std::string, 4> lines;
  std::string* line = lines.data();
  for (const char* name : {kModel, kOptimizer, kRandom, kState}) {
    std::array<char, 17> hex{};
    std::snprintf(hex.data(), hex.size(), "%016llx",
                  static_cast<unsigned long long>(checksum(io::read_file(folder / name))));
    *line++ = message(hex.data(), "  ", name, '\n');
  }
  return lines;
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

/// Throws where the files are not those that were written.
void verify(const fs::path& path) {
  const std::string written = io::read_file(path / kChecksums);
  std::string_view rest = written;
  for (const std::string& line : checksum_lines(path)) {
    if (!rest.starts_with(line)) {
      const std::string name = line.substr(line.find("  ") + 2);
      throw std::runtime_error(message("'", (path / name.substr(0, name.size() - 1)).string(),
                                       "' is damaged: its checksum is ", line.substr(0, 16),
                                       ", and ", kChecksums, " has '",
                                       rest.substr(0, std::min<size_t>(16, rest.size())), "'"));
    }
    rest.remove_prefix(line.size());
  }
  if (!rest.empty()) {
    throw std::runtime_error(
        message("'", (path / kChecksums).string(), "' is damaged: it has too many lines"));
  }
}

Checkpoint read_verified(const fs::path& path) {
  verify(path);
  const auto state = nlohmann::json::parse(io::read_file(path / kState));
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
  state.at("corpus").get_to(checkpoint.corpus);
  checkpoint.recipe = Recipe::parse(state.at("recipe").get<std::string>(),
                                    message("the recipe in '", (path / kState).string(), "'"));
  checkpoint.stage_starts = checkpoint.recipe.by_seconds()
                                ? state.at("stage_starts").get<std::vector<int64_t>>()
                                : stage_starts(checkpoint.recipe, checkpoint.step);
  checkpoint.random = io::read_safetensors(path / kRandom).tensors.at("cpu");
  checkpoint.model = io::read_safetensors(path / kModel).tensors;
  checkpoint.optimizer = io::read_safetensors(path / kOptimizer).tensors;
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
      {"corpus", checkpoint.corpus},
      {"recipe", checkpoint.recipe.deciding_toml()},
  };
  io::write_atomically(folder / kState, state.dump(2) + '\n');
  std::string checksums;
  for (const std::string& line : checksum_lines(folder)) checksums += line;
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

std::map<std::string, at::Tensor> parameters_of(const model::Llama& model) {
  std::map<std::string, at::Tensor> all;
  for (const auto& parameter : model->named_parameters()) {
    all[parameter.key()] = parameter.value().detach();
  }
  return all;
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
