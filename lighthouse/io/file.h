#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lighthouse::io {

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
  struct File;
  std::unique_ptr<File> file_;
};

/// Keeps other processes from a path: while one holds it, others get std::runtime_error naming it.
/// The file that it needs stays; the hold ends with the process, however that ends.
class Lock {
 public:
  explicit Lock(const std::filesystem::path& path);
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  int fd_;
};

/// The bytes of a file. Throws std::runtime_error naming the path.
std::string read_file(const std::filesystem::path& path);

}  // namespace lighthouse::io
