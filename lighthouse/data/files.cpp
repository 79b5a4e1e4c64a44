#include "lighthouse/data/files.h"

#include <fnmatch.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "lighthouse/core/check.h"

namespace lighthouse::data {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void cannot_read(const fs::path& path, const std::string& why) {
  throw std::runtime_error(message("cannot read '", path.string(), "': ", why));
}

// Of ASCII alone, whatever the locale.
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : lower(text)) {
    if (is_letter(c)) {
      words.back() += c;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  return words;
}

/// A path of the data: a file or folder, or a folder and what is to match below it.
struct Entry {
  fs::path root;
  std::vector<std::string> pattern;  ///< name by name
};

bool is_pattern(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }

Entry entry_of(const std::string& path) {
  std::error_code ignored;
  if (!is_pattern(path) || fs::exists(path, ignored)) return {path, {}};
  Entry entry;
  for (const fs::path& part : fs::path(path)) {
    if (!entry.pattern.empty() || is_pattern(part.string())) {
      if (!part.empty()) entry.pattern.push_back(part.string());
    } else {
      entry.root /= part;
    }
  }
  if (entry.root.empty()) entry.root = ".";
  return entry;
}

/// The folder of one of our runs, or of a model: what is in there is not text to train on.
const char* ours(const fs::path& folder) {
  if (fs::is_directory(folder / "checkpoints") &&
      (fs::exists(folder / "lock") || fs::exists(folder / "recipe.toml"))) {
    return "the folder of a run";
  }
  if (fs::exists(folder / "config.json") && (fs::exists(folder / "model.safetensors") ||
                                             fs::exists(folder / "model.safetensors.index.json"))) {
    return "the folder of a model";
  }
  return nullptr;
}

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> entries{fs::directory_iterator(folder), fs::directory_iterator()};
  std::sort(entries.begin(), entries.end());
  return entries;
}

/// Collects the files of one entry.
class Finder {
 public:
  Finder(Entry entry, Inventory& inventory) : entry_(std::move(entry)), inventory_(inventory) {}

  std::vector<fs::path> find() {
    if (entry_.pattern.empty()) {
      take(entry_.root);
    } else if (fs::is_directory(entry_.root)) {
      match(entry_.root, 0);
    }
    // What links lead to comes after all else, so that a folder is read where it lies.
    for (size_t i = 0; i < links_.size(); ++i) {
      if (is_new(links_[i])) {
        enter(links_[i]);
      } else {
        leave_out("a link to a folder that is read already", links_[i]);
      }
    }
    return {files_.begin(), files_.end()};
  }

  /// Of what was looked at last, for messages.
  const fs::path& at() const { return at_; }

 private:
  /// Takes what matches the pattern from that name of it on.
  void match(const fs::path& folder, size_t from) {
    const std::string& name = entry_.pattern[from];
    const bool last = from + 1 == entry_.pattern.size();
    if (name == "**") {
      if (last) return take(folder);
      match(folder, from + 1);
    }
    for (const fs::path& path : sorted_entries(folder)) {
      at_ = path;
      const bool is_link = fs::is_symlink(path), is_folder = fs::is_directory(path);
      if (name == "**") {
        if (is_folder && !is_link) match(path, from);
      } else if (::fnmatch(name.c_str(), path.filename().c_str(), FNM_NOESCAPE) == 0) {
        if (last) {
          take(path);
        } else if (is_folder) {
          match(path, from + 1);
        }
      }
    }
  }

  /// A file, or all files below a folder.
  void take(const fs::path& path) {
    at_ = path;
    if (!fs::is_directory(path)) {
      add(path);
    } else if (is_new(path)) {
      enter(path);
    }
  }

  void enter(const fs::path& folder) {
    for (const fs::path& path : sorted_entries(folder)) {
      at_ = path;
      if (!fs::is_directory(path)) {
        add(path);
      } else if (fs::is_symlink(path)) {
        links_.push_back(path);
      } else if (const char* what = ours(path); what != nullptr) {
        leave_out(what, path);
      } else if (is_new(path)) {
        enter(path);
      }
    }
  }

  void add(const fs::path& path) {
    const fs::file_status status = fs::status(path);
    if (!fs::exists(status)) cannot_read(path, "the symbolic link leads nowhere");
    if (fs::is_regular_file(status)) {
      files_.insert(path);
    } else {
      leave_out("neither a file nor a folder", path);
    }
  }

  void leave_out(const std::string& why, const fs::path& path) {
    inventory_.leave_out(why, path.lexically_relative(entry_.root).generic_string());
  }

  /// Whether the folder was not read yet, by whatever path.
  bool is_new(const fs::path& folder) {
    struct stat status {};
    if (::stat(folder.c_str(), &status) != 0) {
      throw fs::filesystem_error("stat", folder, {errno, std::generic_category()});
    }
    return folders_.insert({status.st_dev, status.st_ino}).second;
  }

  Entry entry_;
  Inventory& inventory_;
  fs::path at_;
  std::set<fs::path> files_;
  std::vector<fs::path> links_;
  std::set<std::pair<dev_t, ino_t>> folders_;
};

}  // namespace

Packing packing_of(const fs::path& path) {
  const std::string name = lower(path.filename());
  return name.ends_with(".gz")    ? Packing::kGzip
         : name.ends_with(".zst") ? Packing::kZstd
                                  : Packing::kNone;
}

Kind kind_of(const fs::path& path) {
  const std::string name = lower(
      packing_of(path) == Packing::kNone ? path.filename() : fs::path(path.filename()).stem());
  const std::pair<const char*, Kind> kinds[] = {{".jsonl", Kind::kJsonLines},
                                                {".ndjson", Kind::kJsonLines},
                                                {".json", Kind::kJson},
                                                {".bin", Kind::kTokens},
                                                {".parquet", Kind::kParquet}};
  for (const auto& [end, kind] : kinds) {
    if (name.ends_with(end)) return kind;
  }
  return Kind::kText;
}

bool is_held_out(const std::string& name) {
  static const std::set<std::string> kTrain{"train", "training"};
  static const std::set<std::string> kHeldOut{"val",  "valid",      "validation", "test",
                                              "eval", "evaluation", "dev",        "heldout"};
  const fs::path path(name);
  const std::vector<fs::path> parts(path.begin(), path.end());
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    const std::vector<std::string> words = words_of(part->string());
    const auto has = [&](const std::set<std::string>& those) {
      return std::ranges::any_of(words, [&](const auto& word) { return those.contains(word); });
    };
    const std::array<std::string, 2> two_words{"held", "out"};
    if (has(kTrain)) return false;
    if (has(kHeldOut) || !std::ranges::search(words, two_words).empty()) return true;
  }
  return false;
}

std::vector<File> find_files(const std::vector<std::string>& paths, Inventory& inventory) {
  std::vector<File> all;
  std::set<fs::path> seen;
  for (size_t i = 0; i < paths.size(); ++i) {
    const Entry entry = entry_of(paths[i]);
    std::error_code error;
    const fs::file_type type = fs::status(entry.root, error).type();
    if (type != fs::file_type::not_found && error) cannot_read(entry.root, error.message());
    if (entry.pattern.empty()) {
      check_argument(type != fs::file_type::not_found, "the data '", paths[i],
                     "' (data.path) does not exist");
      check_argument(type == fs::file_type::regular || type == fs::file_type::directory,
                     "the data '", paths[i], "' (data.path) is neither a file nor a folder");
    }
    Finder finder(entry, inventory);
    std::vector<fs::path> files;
    try {
      files = finder.find();
    } catch (const fs::filesystem_error& failed) {
      cannot_read(failed.path1().empty() ? finder.at() : failed.path1(), failed.code().message());
    }
    check_argument(entry.pattern.empty() || !files.empty(), "the data '", paths[i],
                   "' (data.path) is a pattern that no file matches");
    const bool is_file = entry.pattern.empty() && type == fs::file_type::regular;
    for (const fs::path& file : files) {
      if (!seen.insert(fs::absolute(file).lexically_normal()).second) continue;
      std::string name = file.lexically_relative(entry.root).generic_string();
      if (is_file && paths.size() > 1) name = file.filename().string();
      all.push_back({file, std::move(name), kind_of(file), i});
    }
  }
  return all;
}

std::string folder_of(const std::string& name, int64_t depth) {
  fs::path folder;
  for (const fs::path& part : fs::path(name).parent_path()) {
    if (depth-- > 0) folder /= part;
  }
  return folder.empty() ? "." : folder.generic_string();
}

fs::path path_of(const std::string& data_path, const std::string& name) {
  const Entry entry = entry_of(data_path);
  std::error_code ignored;
  return name == "." || fs::is_regular_file(entry.root, ignored) ? entry.root : entry.root / name;
}

}  // namespace lighthouse::data
