#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lighthouse/data/document_ends.h"
#include "lighthouse/data/file_list.h"
#include "lighthouse/data/files.h"
#include "lighthouse/data/inventory.h"
#include "lighthouse/data/progress.h"
#include "lighthouse/data/source.h"
#include "lighthouse/data/tokens.h"

namespace lighthouse::data {

/// What a model is trained on, and what is held out: text as bytes, or token files.
///
/// Of text a byte is a token. A file is a document; of JSON lines each line is one, the text of one
/// of its fields, and its name is that of the file with the line's number. Documents stand in the
/// order of their files (find_files), and each ends with byte 0, which text never contains. What is
/// empty, not UTF-8, or has a byte 0 is left out. A document is held out whole, if a hash of its
/// name says so: adding or removing others does not move it. Where that leaves a part empty, as it
/// does for a single file, the whole text is split by position, its end held out.
///
/// Where documents are folders (Source), the texts of a folder's files and lines follow one another
/// as one document, each with its byte 0. Its name is the folder's path.
///
/// Large files of text are mapped; all other text is laid out in a file without a name (Spool).
///
/// Where one file's name ends with .bin, all such files are token files (tokens.h), mapped, and
/// other files are left out. Those that say so by their names (is_held_out) are held out where
/// there are any; else the end of all of it is.
class Corpus {
 public:
  /// Why a document is left out.
  static constexpr const char* kEmpty = "empty";
  static constexpr const char* kHasZero = "not text: a byte is NUL";
  static constexpr const char* kNotUtf8 = "not UTF-8";
  /// Why a file is.
  static constexpr const char* kBesideTokens = "beside token files (.bin)";

  /// @param list what is to be read instead of all that `source.path` leads to now: what was read
  ///        before, which must not have changed; empty: all
  /// @throws std::invalid_argument where a path does not exist or leads to nothing to train on, a
  ///         file of the list has changed or is gone, a share is out of range, or the end token is
  ///         missing that token files need, or given for text
  /// @throws std::runtime_error naming the file or folder that cannot be read, or is of a kind that
  ///         cannot be
  static Corpus read(const Source& source, const FileList& list = {},
                     const OnProgress& progress = {});

  const Tokens& train() const { return train_; }
  const Tokens& held_out() const { return held_out_; }
  const DocumentEnds& train_ends() const { return train_ends_; }
  const DocumentEnds& held_out_ends() const { return held_out_ends_; }
  int64_t documents() const { return documents_; }  ///< or token files
  /// All that was read, in its order.
  const FileList& files() const { return files_; }
  const Inventory& inventory() const { return inventory_; }
  /// A hash of both parts: a run refuses to resume on other data.
  uint64_t fingerprint() const { return fingerprint_; }

  /// Throws std::invalid_argument where the text has more bytes than the vocabulary has ids, and
  /// std::runtime_error where a token file has an id that is not below it (Tokens).
  void check_vocabulary(int64_t vocabulary, const OnProgress& progress = {}) const;

  /// What there is: the inventory, and a line.
  std::string describe() const;

 private:
  class Text;

  std::string ends_in_words() const;

  void read_token_files(const std::vector<File>& files, const Source& source);
  void read_text(std::vector<File> files, const Source& source, const OnProgress& progress);
  void check_unchanged(const FileList& list, const Source& source) const;
  /// Token files' errors, with what is likely to have led to them.
  template <class Act>
  void with_hint(const Act& act) const;

  Tokens train_, held_out_;
  DocumentEnds train_ends_, held_out_ends_;
  int64_t documents_ = 0;
  FileList files_;
  Inventory inventory_;
  uint64_t fingerprint_ = 0;
};

}  // namespace lighthouse::data
