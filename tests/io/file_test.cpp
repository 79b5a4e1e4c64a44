#include "lighthouse/io/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <array>

#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::io {
namespace {

using testing::Folder;
using testing::throws;

size_t files_in(const Folder& folder) {
  using Iterator = std::filesystem::directory_iterator;
  return static_cast<size_t>(std::distance(Iterator(folder.path()), Iterator()));
}

TEST(File, WritesPartsAndReadsThemBack) {
  const Folder folder;
  const std::array<std::string_view, 3> parts{"one\n", {}, std::string_view("\0two", 4)};
  write_atomically(folder / "file", parts);
  EXPECT_EQ(read_file(folder / "file"), std::string("one\n\0two", 8));
  write_atomically(folder / "file", "");
  EXPECT_EQ(read_file(folder / "file"), "");
  EXPECT_EQ(files_in(folder), 1U);
}

TEST(File, WritesIntoTheCurrentFolder) {
  const Folder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  write_atomically("file", "here");
  std::filesystem::current_path(before);
  EXPECT_EQ(read_file(folder / "file"), "here");
}

TEST(File, NamesWhatItCannotReadOrWrite) {
  const Folder folder;
  EXPECT_TRUE(
      throws<std::runtime_error>([&] { read_file(folder / "none"); }, {"/none'", "No such file"}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_file(folder.path()); },
                                         {folder.path().string(), "Is a directory"}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { write_atomically(folder / "no/file", "x"); },
                                         {"/no/file", "No such file"}));
}

TEST(File, AFailedWriteLeavesTheOldFile) {
  const Folder folder;
  write_atomically(folder / "file", "old");
  // A limit stands for a full disk.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1000, before.rlim_max};
  const auto ignored = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto result =
      throws<std::runtime_error>([&] { write_atomically(folder / "file", std::string(2000, 'x')); },
                                 {"cannot write", "/file", "File too large"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, ignored);
  EXPECT_TRUE(result);
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(files_in(folder), 1U);
}

/// Writes files of one letter each, all as long, until it is killed.
[[noreturn]] void write_for_ever(const std::filesystem::path& path, size_t bytes) {
  for (char letter = 'a';; letter = letter == 'z' ? 'a' : static_cast<char>(letter + 1)) {
    write_atomically(path, std::string(bytes, letter));
  }
}

TEST(File, AKilledWriterLeavesAWholeFile) {
  constexpr size_t kBytes = 1 << 20;
  const Folder folder;
  write_atomically(folder / "file", std::string(kBytes, '-'));
  for (int i = 0; i < 10; ++i) {
    const pid_t writer = ::fork();
    ASSERT_GE(writer, 0);
    if (writer == 0) write_for_ever(folder / "file", kBytes);
    ::usleep(static_cast<useconds_t>(1000 * (i + 1)));
    ::kill(writer, SIGKILL);
    ASSERT_EQ(::waitpid(writer, nullptr, 0), writer);
    const std::string bytes = read_file(folder / "file");
    EXPECT_EQ(bytes, std::string(kBytes, bytes.at(0)));
  }
}

TEST(RenameDurably, ReplacesWhatIsThere) {
  const Folder folder;
  write_atomically(folder / "old", "old");
  write_atomically(folder / "new", "new");
  rename_durably(folder / "new", folder / "old");
  EXPECT_EQ(read_file(folder / "old"), "new");
  EXPECT_EQ(files_in(folder), 1U);
  EXPECT_TRUE(throws<std::runtime_error>([&] { rename_durably(folder / "none", folder / "old"); },
                                         {(folder / "old").string()}));
}

TEST(Appender, AddsToWhatIsThere) {
  const Folder folder;
  write_atomically(folder / "file", "one ");
  Appender file(folder / "file");
  file.append("two ");
  EXPECT_EQ(read_file(folder / "file"), "one two ");
  file.append("three");
  file.sync();
  EXPECT_EQ(read_file(folder / "file"), "one two three");
  Appender(folder / "other").append("made");
  EXPECT_EQ(read_file(folder / "other"), "made");
  EXPECT_TRUE(
      throws<std::runtime_error>([&] { Appender("/does/not/exist"); }, {"/does/not/exist"}));
}

TEST(Lock, IsHeldByOneAtATime) {
  const Folder folder;
  {
    const Lock lock(folder / "lock");
    EXPECT_TRUE(throws<std::runtime_error>([&] { Lock other(folder / "lock"); },
                                           {(folder / "lock").string()}));
  }
  const Lock again(folder / "lock");
}

}  // namespace
}  // namespace lighthouse::io
