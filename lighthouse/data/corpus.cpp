#include "lighthouse/data/corpus.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "lighthouse/core/check.h"
#include "lighthouse/data/hash.h"
#include "lighthouse/data/json_lines.h"
#include "lighthouse/data/reader.h"
#include "lighthouse/data/spool.h"
#include "lighthouse/data/text_check.h"

namespace lighthouse::data {
namespace {

namespace fs = std::filesystem;

/// A file of text of that many bytes is mapped: a process may have some ten thousand mappings.
constexpr uint64_t kMapped = uint64_t{1} << 24;

/// A number in [0, 1) that depends on the name alone.
double place(const std::string& name) {
  uint64_t bits = hash(name);
  // The top bits of FNV-1a hardly depend on a path's last letters; these steps spread them.
  bits = (bits ^ bits >> 33) * 0xff51afd7ed558ccdu;
  bits = (bits ^ bits >> 33) * 0xc4ceb9fe1a85ec53u;
  return static_cast<double>((bits ^ bits >> 33) >> 11) * 0x1p-53;
}

/// How many of `size` tokens are held out, from the end; both parts keep at least one.
uint64_t held_out_tokens(uint64_t size, double share) {
  const int64_t last = std::llround(static_cast<double>(size) * share);
  return static_cast<uint64_t>(std::clamp<int64_t>(last, 1, static_cast<int64_t>(size) - 1));
}

/// Of the first `cut` tokens, and of the others.
std::pair<std::vector<uint64_t>, std::vector<uint64_t>> ends_of_parts(
    const std::vector<uint64_t>& ends, uint64_t cut) {
  const auto border = std::ranges::upper_bound(ends, cut);
  std::vector<uint64_t> others(border, ends.end());
  for (uint64_t& end : others) end -= cut;
  return {{ends.begin(), border}, others};
}

std::vector<uint64_t> ends_of_files(const std::vector<Tokens>& files) {
  std::vector<uint64_t> ends;
  for (const Tokens& file : files) ends.push_back((ends.empty() ? 0 : ends.back()) + file.size());
  return ends;
}

/// "'a'", "'a' and 2 more"
std::string in_words(const std::vector<std::string>& paths) {
  return message('\'', paths[0], '\'',
                 paths.size() > 1 ? message(" and ", paths.size() - 1, " more") : "");
}

/// The text of one part, to train on or held out, as it is laid out.
class Part {
 public:
  uint64_t size() const { return spool_.size() + mapped_bytes_; }
  const std::vector<uint64_t>& ends() const { return ends_; }

  void append(std::string_view bytes) { spool_.append(bytes); }
  void append(const Tokens& mapped) {
    mapped_.emplace_back(spool_.size(), mapped);
    mapped_bytes_ += mapped.size();
  }
  /// Takes back the last bytes that were appended.
  void take_back(uint64_t bytes) { spool_.cut(spool_.size() - bytes); }
  /// Where there is something of one.
  void end_document() {
    if (size() > (ends_.empty() ? 0 : ends_.back())) ends_.push_back(size());
  }

  /// All of it, once there is no more.
  Tokens finish() {
    const Tokens spooled(spool_.map(), "the text");
    std::vector<Tokens> all;
    uint64_t begin = 0;
    for (const auto& [end, mapped] : mapped_) {
      all.push_back(spooled.slice(begin, end - begin));
      all.push_back(mapped);
      begin = end;
    }
    all.push_back(spooled.slice(begin, spooled.size() - begin));
    return Tokens::join(all);
  }

 private:
  Spool spool_;
  std::vector<std::pair<uint64_t, Tokens>> mapped_;  ///< each with the bytes spooled before it
  uint64_t mapped_bytes_ = 0;
  std::vector<uint64_t> ends_;  ///< where each document ends
};

}  // namespace

/// Reads the documents of text, file by file, into the two parts.
class Corpus::Text {
 public:
  Text(const Source& source, Corpus& corpus) : source_(source), corpus_(corpus) {}

  void read(const File& file) {
    check_kind(file);
    const bool lines = file.kind == Kind::kJsonLines ||
                       (file.kind == Kind::kJson && has_json_lines(file.path, source_.text_field));
    taken_ = {file.entry, lines ? "json-lines" : "text", 0, 0, file.name};
    texts_ = 0;
    shown_ = file.name == "." ? file.path.filename().string() : file.name;
    if (of_folders()) begin_folder(file);
    if (lines) {
      read_json_lines(file.path, source_.text_field, [&](int64_t line, const std::string& text) {
        read_line(file, message(':', line), text);
      });
    } else {
      read_file(file);
    }
    if (texts_ > 0) {
      corpus_.inventory_.take(lines ? "JSON lines" : "text", file.path, of_folders() ? 0 : texts_,
                              taken_.tokens);
    } else {
      taken_ = {file.entry, "left-out", 0, 0, file.name};
    }
    corpus_.files_.push_back(taken_);
  }

  /// After the last file.
  void finish() {
    train_.end_document();
    held_out_.end_document();
  }

  Part& train() { return train_; }
  Part& held_out() { return held_out_; }

 private:
  static void check_kind(const File& file) {
    if (file.kind != Kind::kParquet) return;
    throw std::runtime_error(
        message("'", file.path.string(),
                "' is Parquet, which is not read here: python -m lighthouse_attention.tokens makes "
                "token files of it; or let data.path name other files alone"));
  }

  bool of_folders() const { return source_.documents == Documents::kFolders; }

  void begin_folder(const File& file) {
    std::string folder = folder_of(file.name, source_.folder_depth);
    if (file.entry == entry_ && folder == folder_) return;
    finish();
    entry_ = file.entry;
    folder_ = std::move(folder);
  }

  /// Where the text of that name belongs, of a file or line.
  Part& part_of(const std::string& name) {
    return place(of_folders() ? folder_ : name) < source_.held_out_share ? held_out_ : train_;
  }

  void read_line(const File& file, const std::string& number, std::string_view text) {
    TextCheck check;
    if (!check.feed(text) || !check.finish()) return leave_out(shown_ + number, check);
    if (text.empty()) return corpus_.inventory_.leave_out(kEmpty, shown_ + number);
    Part& part = part_of(file.name + number);
    part.append(text);
    count(text);
    end(part);
  }

  void read_file(const File& file) {
    const bool is_large =
        packing_of(file.path) == Packing::kNone && fs::file_size(file.path) >= kMapped;
    return is_large ? map_file_of(file) : spool_file(file);
  }

  void spool_file(const File& file) {
    Part& part = part_of(file.name);
    TextCheck check;
    uint64_t size = 0;
    bool is_text = true, first = true;
    Reader reader(file.path);
    for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) {
      if (!(is_text = check.feed(piece))) break;
      if (first && piece.starts_with(kByteOrderMark)) piece.remove_prefix(kByteOrderMark.size());
      first = false;
      part.append(piece);
      count(piece);
      size += piece.size();
    }
    if (is_text && check.finish() && size > 0) return end(part);
    part.take_back(size);
    if (is_text && check.finish()) return corpus_.inventory_.leave_out(kEmpty, shown_);
    leave_out(shown_, check);
  }

  void map_file_of(const File& file) {
    const Tokens all(map_file(file.path), file.path.string());
    TextCheck check;
    uint64_t begin = 0;
    bool is_text = true, first = true;
    all.scan([&](std::string_view piece) {
      if (!is_text || !(is_text = check.feed(piece))) return;
      if (first && piece.starts_with(kByteOrderMark)) begin = kByteOrderMark.size();
      count(piece.substr(first ? begin : 0));
      first = false;
    });
    if (!is_text || !check.finish()) return leave_out(shown_, check);
    Part& part = part_of(file.name);
    part.append(all.slice(begin, all.size() - begin));
    end(part);
  }

  void count(std::string_view bytes) {
    const auto* data = reinterpret_cast<const Bytef*>(bytes.data());
    taken_.hash = ::crc32_z(static_cast<uLong>(taken_.hash), data, bytes.size());
    taken_.tokens += bytes.size();
  }

  void end(Part& part) {
    constexpr std::string_view kEnd("\0", 1);
    part.append(kEnd);
    count(kEnd);
    if (!of_folders()) part.end_document();
    ++texts_;
  }

  void leave_out(const std::string& name, const TextCheck& check) {
    corpus_.inventory_.leave_out(check.found_zero() ? kHasZero : kNotUtf8, name, check.fault());
  }

  const Source& source_;
  Corpus& corpus_;
  Part train_, held_out_;
  ListedFile taken_{};
  int64_t texts_ = 0;  ///< of the file: one, or its lines
  size_t entry_ = 0;   ///< of the folder whose files are read
  std::string folder_;
  std::string shown_;  ///< name of the file, for messages
};

Corpus Corpus::read(const Source& source, const FileList& list, const OnProgress& progress) {
  check_argument(source.held_out_share > 0 && source.held_out_share < 1,
                 "the share of held-out text is ", source.held_out_share,
                 "; it must be between 0 and 1");
  check_argument(!source.path.empty(), "data.path names nothing to read");
  Corpus corpus;
  std::vector<File> files;
  if (list.empty()) files = find_files(source.path, corpus.inventory_);
  for (const ListedFile& file : list) {
    check_argument(file.entry < source.path.size(), "data.path has ", source.path.size(),
                   " paths; the run began with more");
    const fs::path path = path_of(source.path[file.entry], file.name);
    check_argument(fs::exists(path), "the run began with the file '", path.string(),
                   "', which is gone");
    const Kind kind = file.as == "json-lines"        ? Kind::kJsonLines
                      : file.as.starts_with("token") ? Kind::kTokens
                                                     : Kind::kText;
    if (file.as != "left-out") files.push_back({path, file.name, kind, file.entry});
  }
  if (std::ranges::count(files, Kind::kTokens, &File::kind) > 0) {
    corpus.read_token_files(files, source);
  } else {
    corpus.read_text(std::move(files), source, progress);
  }
  corpus.check_unchanged(list, source);
  const uint64_t parts[2] = {corpus.train_.fingerprint(), corpus.held_out_.fingerprint()};
  corpus.fingerprint_ = hash(std::span(reinterpret_cast<const uint8_t*>(parts), sizeof(parts)));
  return corpus;
}

void Corpus::read_text(std::vector<File> files, const Source& source, const OnProgress& progress) {
  if (source.documents == Documents::kFolders) {
    // A folder's own files may stand before and after those of the folders in it.
    std::ranges::stable_sort(files, {}, [&](const File& file) {
      return std::pair(file.entry, fs::path(folder_of(file.name, source.folder_depth)));
    });
  }
  std::vector<uint64_t> sizes;
  for (const File& file : files) sizes.push_back(fs::file_size(file.path));
  Ticker ticker("reading the data", std::reduce(sizes.begin(), sizes.end()), progress);
  Text text(source, *this);
  for (size_t i = 0; i < files.size(); ++i) {
    text.read(files[i]);
    ticker.add(sizes[i]);
  }
  text.finish();
  Part &train = text.train(), &held_out = text.held_out();
  documents_ = static_cast<int64_t>(train.ends().size() + held_out.ends().size());
  check_argument(documents_ > 0, "the data ", in_words(source.path), " (data.path) holds no text",
                 inventory_.left_out() == 0 ? "" : ": ", inventory_.left_out_in_words());
  check_argument(source.end_token < 0, "data.end_token is ", source.end_token, ", and the data ",
                 in_words(source.path),
                 " is text, whose documents end with byte 0; it must be left out");
  train_ends_.places = train.ends();
  held_out_ends_.places = held_out.ends();
  train_ = train.finish();
  held_out_ = held_out.finish();
  if (!train_.empty() && !held_out_.empty()) return;

  const Tokens all = train_.empty() ? held_out_ : train_;
  const uint64_t last = held_out_tokens(all.size(), source.held_out_share);
  const uint64_t cut = all.size() - last;
  std::tie(train_ends_.places, held_out_ends_.places) =
      ends_of_parts(train_.empty() ? held_out_ends_.places : train_ends_.places, cut);
  train_ = Tokens::join({all.slice(0, cut), Tokens(std::vector<uint8_t>{0})});
  held_out_ = all.slice(cut, last);
  train_ends_.places.push_back(train_.size());
}

void Corpus::read_token_files(const std::vector<File>& files, const Source& source) {
  check_argument(source.documents == Documents::kFiles,
                 "data.documents is 'folders', and the data ", in_words(source.path),
                 " is token files; folders are documents of text alone");
  check_argument(
      !source.needs_documents() || source.end_token >= 0, "data.",
      source.attention == Attention::kWithin ? "attention is 'within'" : "positions is 'document'",
      ", and the data ", in_words(source.path),
      " is token files; data.end_token must be the id that ends each of their "
      "documents");
  std::vector<Tokens> train, held_out;
  for (const File& file : files) {
    if (file.kind != Kind::kTokens) inventory_.leave_out(kBesideTokens, file.name);
  }
  with_hint([&] {
    for (const File& file : files) {
      if (file.kind != Kind::kTokens) continue;
      if (packing_of(file.path) != Packing::kNone) {
        throw std::runtime_error(message("the token file '", file.path.string(),
                                         "' is compressed; it must be decompressed to be mapped"));
      }
      const Tokens tokens = Tokens::map(file.path);
      const bool apart = is_held_out(file.name);
      (apart ? held_out : train).push_back(tokens);
      files_.push_back({file.entry, apart ? "tokens-held-out" : "tokens", tokens.size(),
                        tokens.fingerprint(), file.name});
    }
  });
  documents_ = static_cast<int64_t>(files_.size());
  if (train.empty()) {
    std::swap(train, held_out);
    for (ListedFile& file : files_) file.as = "tokens";
  }
  for (const ListedFile& file : files_) {
    inventory_.take(file.as == "tokens" ? "token files" : "token files, held out by their names",
                    path_of(source.path[file.entry], file.name), 0, file.tokens);
  }
  train_ = Tokens::join(train);
  held_out_ = Tokens::join(held_out);
  train_ends_ = {ends_of_files(train), source.end_token};
  held_out_ends_ = {ends_of_files(held_out), source.end_token};
  if (!held_out_.empty()) return;
  const uint64_t size = train_.size();
  check_argument(size >= 2, "the token files hold ", size, " token; 2 or more are needed");
  const uint64_t last = held_out_tokens(size, source.held_out_share);
  held_out_ = train_.slice(size - last, last);
  train_ = train_.slice(0, size - last);
  std::tie(train_ends_.places, held_out_ends_.places) =
      ends_of_parts(train_ends_.places, size - last);
}

void Corpus::check_unchanged(const FileList& list, const Source& source) const {
  FileList read = files_;
  std::erase_if(read, [](const ListedFile& file) { return file.as == "left-out"; });
  size_t next = 0;
  for (const ListedFile& file : list) {
    if (file.as == "left-out") continue;
    const bool is_there = next < read.size() && read[next].name == file.name;
    check_argument(is_there && read[next] == file, "the file '",
                   path_of(source.path[file.entry], file.name).string(),
                   "' is not what the run began with: ",
                   !is_there ? "it is not text any more"
                   : read[next].tokens != file.tokens
                       ? message("it has ", read[next].tokens, " tokens, it had ", file.tokens)
                       : "it was changed");
    ++next;
  }
}

template <class Act>
void Corpus::with_hint(const Act& act) const {
  try {
    act();
  } catch (const std::runtime_error& error) {
    const int64_t others = inventory_.left_out(kBesideTokens);
    if (others == 0) throw;
    throw std::runtime_error(message(
        error.what(), "; it is read as a token file because its name ends with .bin, and ", others,
        " other files are left out for it: if they are the data, name them (data.path = "
        "\"FOLDER/**/*.txt\")"));
  }
}

void Corpus::check_vocabulary(int64_t vocabulary, const OnProgress& progress) const {
  check_argument(!train_.is_text() || vocabulary >= 256, "model.vocab_size is ", vocabulary,
                 "; of text it must be 256 or more: a byte is a token");
  if (train_.is_text()) return;
  with_hint([&] {
    for (const Tokens* part : {&train_, &held_out_}) part->check_vocabulary(vocabulary, progress);
  });
}

/// Of token files, whether their end token may be another one.
std::string Corpus::ends_in_words() const {
  constexpr uint64_t kLooked = uint64_t{1} << 20;
  if (train_ends_.token < 0) return "";
  const std::vector<int64_t> ids = train_.first(kLooked);
  const auto ends = std::ranges::count(ids, train_ends_.token);
  return message("; of the first ", ids.size(), " tokens ", ends == 0 ? "none" : message(ends),
                 ends == 1 ? " ends" : " end", " a document (data.end_token = ", train_ends_.token,
                 ')');
}

std::string Corpus::describe() const {
  const bool text = train_.is_text();
  const char* unit = text ? "bytes" : "tokens";
  return message(inventory_.table(unit), text ? "text: " : "tokens: ", documents_,
                 text ? " documents, " : " files, ", train_.size(), ' ', unit, " to train on, ",
                 held_out_.size(), " held out", ends_in_words());
}

}  // namespace lighthouse::data
