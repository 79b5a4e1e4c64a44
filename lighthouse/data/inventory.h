#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace lighthouse::data {

/// What of the data is taken as what, and what is left out, and why.
class Inventory {
 public:
  /// A file, of which that many documents and tokens are taken. Documents: 0 where they are not
  /// known.
  void take(const std::string& as, const std::filesystem::path& file, int64_t documents,
            uint64_t tokens);
  /// A file or folder, or a line of JSON lines; `detail` of it.
  void leave_out(const std::string& why, const std::string& name, const std::string& detail = "");

  /// How many were left out for that reason.
  int64_t left_out(const std::string& why) const;
  /// How many were left out in all.
  int64_t left_out() const;

  /// A line for each kind and each reason; the names of the first that were left out. `unit` is
  /// what a token is called.
  std::string table(const std::string& unit) const;
  /// "2 empty (a, b), 1 not UTF-8 (c: byte 17 is not UTF-8)"
  std::string left_out_in_words() const;

 private:
  struct Taken {
    std::string as;
    int64_t files = 0, documents = 0;
    uint64_t tokens = 0;
    std::map<std::string, int64_t> endings;  ///< files by the end of their name
  };
  struct LeftOut {
    std::string why;
    int64_t count = 0;
    std::string names;  ///< of the first
  };

  std::vector<Taken> taken_;
  std::vector<LeftOut> left_out_;
};

}  // namespace lighthouse::data
