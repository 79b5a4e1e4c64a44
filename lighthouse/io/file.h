#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lighthouse::io {

class Descriptor;

/// Replaces the file at `path` with `parts`, one after the other: whenever the process dies, or the
/// machine, the path holds the whole old file or the whole new one, and once this has returned the
/// new one. A file that was begun and not finished is called `path` + ".partial-" + process id.
/// One thread at a time may write a path. Throws std::runtime_error naming the path.
void write_atomically(const std::filesystem::path& path, std::span<const std::string_view> parts);
void write_atomically(const std::filesystem::path& path, std::string_view bytes);

/// Gives a file or folder another name, on the same disk and in place of a file or an empty folder
/// that has it; once this has returned, the new name outlasts the machine. Throws
/// std::runtime_error naming the path.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

/// A file that grows at its end, and is made where there is none. Throws std::runtime_error naming
/// the path.
class Appender {
 public:
  explicit Appender(const std::filesystem::path& path);
  ~Appender();
  Appender(const Appender&) = delete;
  Appender& operator=(const Appender&) = delete;

  /// Once it has returned, the bytes outlast the process.
  void append(std::string_view bytes);
  /// Once it has returned, they outlast the machine.
  void sync();

 private:
  std::filesystem::path path_;
  std::unique_ptr<Descriptor> file_;
};

/// A file that a user asked for, such as --json FILE. A regular file, or one that does not exist
/// yet, is replaced as by write_atomically and keeps its permissions; behind a symbolic link, the
/// file that it points to. Anything else, such as a pipe or a device, is written to directly, and
/// so is standard output, whose name is "-" too.
class OutputFile {
 public:
  /// Throws std::invalid_argument, naming the path and the reason, if it cannot be written.
  explicit OutputFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  /// Also for /dev/stdout, and for the file that standard output is redirected to.
  bool is_standard_output() const;

  /// Throws std::runtime_error naming the path.
  void write(std::string_view bytes) const;

 private:
  std::filesystem::path path_;
  std::filesystem::path target_;  ///< the regular file to replace; empty if there is none
  mode_t permissions_ = 0;        ///< of that file; 0 if it does not exist yet
  int descriptor_ = -1;           ///< standard output or error, if that is where `path_` leads
};

/// Keeps other processes from a path while it exists, however the process ends. The file stays, and
/// says who holds it.
class Lock {
 public:
  /// Throws std::runtime_error: "`what` is in use by process 123 on HOST".
  Lock(const std::filesystem::path& path, const std::string& what);
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::unique_ptr<Descriptor> file_;
};

/// The absolute path, without ".", ".." and a slash at the end: as a name for the reader, and to
/// take its last part.
std::filesystem::path normal_path(const std::filesystem::path& path);

/// The bytes of a file. Throws std::runtime_error naming the path.
std::string read_file(const std::filesystem::path& path);

}  // namespace lighthouse::io
