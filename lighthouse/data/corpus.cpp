#include "lighthouse/data/corpus.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "lighthouse/core/check.h"
#include "lighthouse/data/hash.h"
#include "lighthouse/data/json_lines.h"
#include "lighthouse/io/file.h"

namespace lighthouse::data {
namespace {

namespace fs = std::filesystem;

/// A number in [0, 1) that depends on the path alone.
double place(const std::string& relative) {
  uint64_t bits = hash(relative);
  // The top bits of FNV-1a hardly depend on a path's last letters; these steps spread them.
  bits = (bits ^ bits >> 33) * 0xff51afd7ed558ccdu;
  bits = (bits ^ bits >> 33) * 0xc4ceb9fe1a85ec53u;
  return static_cast<double>((bits ^ bits >> 33) >> 11) * 0x1p-53;
}

[[noreturn]] void cannot_read(const fs::path& path, const std::string& why) {
  throw std::runtime_error(message("cannot read '", path.string(), "': ", why));
}

/// The regular files below a folder, or the one file.
std::vector<fs::path> files_of(const fs::path& root) {
  std::vector<fs::path> files;
  fs::path at = root;
  try {
    if (!fs::is_directory(root)) return {root};
    for (fs::recursive_directory_iterator it(root), end; it != end; ++it) {
      at = it->path();
      if (fs::is_directory(it->symlink_status())) continue;
      const fs::file_status status = fs::status(at);
      if (!fs::exists(status)) cannot_read(at, "the symbolic link leads nowhere");
      if (fs::is_regular_file(status)) files.push_back(at);
    }
  } catch (const fs::filesystem_error& error) {
    cannot_read(error.path1().empty() ? at : error.path1(), error.code().message());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Valid UTF-8 without NUL.
bool is_text(std::string_view text) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const size_t size = text.size();
  for (size_t i = 0; i < size;) {
    const uint8_t lead = bytes[i++];
    if (lead == 0) return false;
    if (lead < 0x80) continue;
    // Bytes that follow a lead byte are 10xxxxxx; the first of them is bounded further, against
    // overlong forms, surrogates, and points past U+10FFFF.
    const size_t following = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if (lead < 0xc2 || lead > 0xf4 || size - i < following) return false;
    const uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (bytes[i] < least || bytes[i] > most) return false;
    for (size_t j = 1; j < following; ++j) {
      if ((bytes[i + j] & 0xc0) != 0x80) return false;
    }
    i += following;
  }
  return true;
}

/// Of so many, those at the end that are held out; both parts keep one.
int64_t held_out_tokens(uint64_t size, double share) {
  const int64_t last = std::llround(static_cast<double>(size) * share);
  return std::clamp<int64_t>(last, 1, static_cast<int64_t>(size) - 1);
}

}  // namespace

Corpus Corpus::read(const fs::path& path, double held_out_share, const std::string& text_field) {
  check_argument(held_out_share > 0 && held_out_share < 1, "the share of held-out text is ",
                 held_out_share, "; it must be between 0 and 1");
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  check_argument(type != fs::file_type::not_found, "the text '", path.string(), "' does not exist");
  if (error) cannot_read(path, error.message());
  check_argument(type == fs::file_type::regular || type == fs::file_type::directory, "the text '",
                 path.string(), "' is neither a file nor a folder");

  const std::vector<fs::path> files = files_of(path);
  std::vector<fs::path> token_files;
  std::ranges::copy_if(files, std::back_inserter(token_files),
                       [](const fs::path& file) { return file.extension() == ".bin"; });
  if (!token_files.empty()) return of_token_files(token_files, held_out_share);

  Corpus corpus;
  std::vector<std::string> documents;
  std::vector<bool> held_out;
  const auto add = [&](const std::string& name, std::string bytes) {
    if (bytes.empty()) {
      ++corpus.skipped_empty_;
    } else if (!is_text(bytes)) {
      ++corpus.skipped_binary_;
    } else {
      bytes.push_back('\0');
      documents.push_back(std::move(bytes));
      held_out.push_back(place(name) < held_out_share);
    }
  };
  for (const fs::path& file : files) {
    const std::string name = file.lexically_relative(path).generic_string();
    if (is_json_lines(file)) {
      read_json_lines(file, text_field, [&](int64_t line, std::string text) {
        add(message(name, ':', line), std::move(text));
      });
    } else {
      add(name, io::read_file(file));
    }
  }
  check_argument(!documents.empty(), "the text '", path.string(),
                 "' holds no text: ", corpus.skipped_empty_, " empty and ", corpus.skipped_binary_,
                 " binary files");
  corpus.documents_ = static_cast<int64_t>(documents.size());

  const int64_t documents_held_out = std::count(held_out.begin(), held_out.end(), true);
  const bool by_document = 0 < documents_held_out && documents_held_out < corpus.documents_;
  std::vector<uint8_t> train, apart;
  for (size_t i = 0; i < documents.size(); ++i) {
    auto& part = by_document && held_out[i] ? apart : train;
    part.insert(part.end(), documents[i].begin(), documents[i].end());
  }
  if (!by_document) {
    const auto cut = train.end() - held_out_tokens(train.size(), held_out_share);
    apart.assign(cut, train.end());
    train.erase(cut, train.end());
    train.push_back(0);
  }
  corpus.train_ = std::move(train);
  corpus.held_out_ = std::move(apart);
  return corpus;
}

Corpus Corpus::of_token_files(const std::vector<fs::path>& files, double held_out_share) {
  Corpus corpus;
  corpus.documents_ = static_cast<int64_t>(files.size());
  std::vector<Tokens> train, held_out;
  for (const fs::path& file : files) {
    const std::string name = file.filename();
    const bool apart = name.starts_with("val") || name.find("_val") != std::string::npos;
    (apart ? held_out : train).push_back(Tokens::map(file));
  }
  if (train.empty()) std::swap(train, held_out);
  corpus.train_ = Tokens::join(train);
  corpus.held_out_ = Tokens::join(held_out);
  if (held_out.empty()) {
    const uint64_t size = corpus.train_.size();
    check_argument(size >= 2, "the token files hold ", size, " token; 2 or more are needed");
    const auto last = static_cast<uint64_t>(held_out_tokens(size, held_out_share));
    corpus.held_out_ = corpus.train_.slice(size - last, last);
    corpus.train_ = corpus.train_.slice(0, size - last);
  }
  return corpus;
}

uint64_t Corpus::fingerprint() const {
  const uint64_t parts[2] = {train_.fingerprint(), held_out_.fingerprint()};
  return hash(std::span(reinterpret_cast<const uint8_t*>(parts), sizeof(parts)));
}

std::string Corpus::describe() const {
  if (!train_.is_text()) {
    return message("tokens: ", documents_, " files, ", train_.size(), " tokens to train on, ",
                   held_out_.size(), " held out");
  }
  return message("text: ", documents_, " documents, ", train_.size(), " bytes to train on, ",
                 held_out_.size(), " held out; skipped ", skipped_empty_, " empty and ",
                 skipped_binary_, " binary files");
}

}  // namespace lighthouse::data
