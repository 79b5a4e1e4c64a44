#include "lighthouse/train/agreement.h"

#include <ATen/Version.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "lighthouse/core/check.h"
#include "lighthouse/core/hex.h"
#include "lighthouse/distributed/connect.h"
#include "lighthouse/run/recipe_fields.h"
#include "lighthouse/train/train.h"

namespace lighthouse::train {
namespace {

using json = nlohmann::ordered_json;

/// The first digits of the identity (GNU build ID) that the linker gave a file in memory.
/// @param name in the name of the library; empty: the program
std::string build_of(const std::string& name) {
  struct Search {
    const std::string& name;
    std::string found;
  } search{name, "unknown"};
  const auto look = [](dl_phdr_info* file, size_t /*size*/, void* data) {
    Search& wanted = *static_cast<Search*>(data);
    const std::string path = file->dlpi_name;
    if (wanted.name.empty() ? !path.empty() : path.find(wanted.name) == std::string::npos) return 0;
    for (int i = 0; i < file->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = file->dlpi_phdr[i];
      if (part.p_type != PT_NOTE) continue;
      const auto* notes = reinterpret_cast<const unsigned char*>(file->dlpi_addr + part.p_vaddr);
      const auto padded = [](size_t size) { return (size + 3) / 4 * 4; };
      for (size_t at = 0; at + sizeof(ElfW(Nhdr)) <= part.p_memsz;) {
        ElfW(Nhdr) note;
        std::memcpy(&note, notes + at, sizeof note);
        at += sizeof note + padded(note.n_namesz);
        if (note.n_type == NT_GNU_BUILD_ID) {
          wanted.found = hex(notes + at, std::min<size_t>(note.n_descsz, 6));
          return 1;
        }
        at += padded(note.n_descsz);
      }
    }
    return 1;
  };
  dl_iterate_phdr(look, &search);
  return search.found;
}

/// The version of the PyTorch that is in memory, which need not be the one that we were built with.
std::string version_of_torch() {
  const std::string config = at::show_config(), key = "TORCH_VERSION=";
  const size_t at = config.find(key);
  if (at == std::string::npos) return "unknown";
  const size_t begin = at + key.size();
  return config.substr(begin, config.find_first_of(", \n", begin) - begin);
}

}  // namespace

Facts facts_of(const run::Recipe& recipe, const Start& start) {
  const auto yes_or_no = [](bool value) { return value ? "given" : "not given"; };
  Facts facts{{"the version of the program", LIGHTHOUSE_VERSION},
              {"the build of the program", build_of("") + ' ' + build_of("liblighthouse.so")},
              {"PyTorch's version", version_of_torch()},
              {"PyTorch's build", build_of("libtorch_cpu.so")},
              {"--resume", yes_or_no(start.resume)},
              {"--resume-from", yes_or_no(start.from.has_value())},
              {"--branch-from", yes_or_no(start.branch.has_value())},
              {"--force", yes_or_no(start.force)}};
  run::Recipe copy = recipe;
  // Hosts may have the same files in other places: the data has a fingerprint.
  copy.data.path.clear();
  copy.run.out.clear();
  copy.run.device = copy.run.device.substr(0, copy.run.device.find(':'));
  for (const run::Section& section : run::sections(copy)) {
    for (const run::Field& field : section.fields) {
      facts.emplace_back(section.name + '.' + field.key, run::to_text(field.value));
    }
  }
  return facts;
}

void check_agreement(const distributed::World& world, const Facts& facts) {
  if (world.size() == 1) return;
  json own{{"host", distributed::host_name()}, {"facts", json::object()}};
  for (const auto& [name, value] : facts) own["facts"][name] = value;
  constexpr auto kReplace = json::error_handler_t::replace;  // bytes that are not UTF-8
  std::vector<json> ranks;
  // A rank may have more facts than another, as of a stage that only its recipe has.
  std::vector<std::string> names;
  for (const std::string& text : world.gather(own.dump(-1, ' ', false, kReplace))) {
    ranks.push_back(json::parse(text));
    for (const auto& [name, value] : ranks.back()["facts"].items()) {
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    }
  }

  for (const std::string& name : names) {
    std::map<std::string, std::vector<size_t>> having;  // ranks by their value
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      having[ranks[rank]["facts"].value(name, "missing")].push_back(rank);
    }
    if (having.size() == 1) continue;
    // Most are right; of two equal halves, that of rank 0.
    const auto right = std::ranges::max_element(having, {}, [](const auto& value) {
      return std::pair(value.second.size(), -static_cast<int64_t>(value.second.front()));
    });
    size_t wrong = 0;
    while (ranks[wrong]["facts"].value(name, "missing") == right->first) ++wrong;
    const auto of = [&](size_t rank) {
      return message("on rank ", rank, " (", ranks[rank]["host"].get<std::string>(), ")");
    };
    throw std::invalid_argument(message(
        name, " is ", ranks[wrong]["facts"].value(name, "missing"), ' ', of(wrong), ", and ",
        right->first, ' ', of(right->second.front()), "; all ranks must have the same"));
  }
}

}  // namespace lighthouse::train
