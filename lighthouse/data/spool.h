#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lighthouse/data/mapping.h"

namespace lighthouse::data {

/// Bytes that are laid one after the other in a file without a name, and are mapped when all are
/// there: they take disk, not memory. The file is in $TMPDIR, or in /var/tmp, and is gone when
/// nothing uses it any more. Throws std::runtime_error where it cannot be written.
class Spool {
 public:
  Spool() = default;
  ~Spool();
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  void append(std::string_view bytes);
  uint64_t size() const { return written_ + buffer_.size(); }
  /// Takes back what came after the first `size` bytes.
  void cut(uint64_t size);
  /// All of it; nothing may be appended then.
  Mapping map();

 private:
  void flush();

  std::string folder_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::string buffer_;
};

}  // namespace lighthouse::data
