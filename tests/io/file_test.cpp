#include "lighthouse/io/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

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

namespace fs = std::filesystem;

TEST(OutputFile, ReplacesAFileAndKeepsItsPermissions) {
  const Folder folder;
  OutputFile(folder / "file").write("one");
  EXPECT_EQ(read_file(folder / "file"), "one");
  constexpr auto kPermissions = fs::perms::owner_read | fs::perms::owner_write;
  fs::permissions(folder / "file", kPermissions);
  const std::ifstream old(folder / "file");
  OutputFile(folder / "file").write("two");
  EXPECT_EQ(read_file(folder / "file"), "two");
  EXPECT_EQ(fs::status(folder / "file").permissions(), kPermissions);
  std::ostringstream kept;
  kept << old.rdbuf();
  EXPECT_EQ(kept.str(), "one");  // replaced as a whole, not written over
  EXPECT_EQ(files_in(folder), 1U);
}

TEST(OutputFile, FollowsSymbolicLinks) {
  const Folder folder;
  fs::create_directory(folder / "to");
  fs::create_symlink("to/first", folder / "link");
  fs::create_symlink("second", folder / "to/first");
  for (const char* text : {"new", "again"}) {  // the target is not there at first
    OutputFile(folder / "link").write(text);
    EXPECT_TRUE(fs::is_symlink(folder / "link"));
    EXPECT_TRUE(fs::is_symlink(folder / "to/first"));
    EXPECT_EQ(read_file(folder / "to/second"), text);
  }
  fs::create_symlink("loop", folder / "loop");
  EXPECT_TRUE(throws<std::invalid_argument>([&] { OutputFile(folder / "loop"); },
                                            {"/loop'", "symbolic link to itself"}));
}

TEST(OutputFile, WritesThroughAPipe) {
  const Folder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  fs::create_symlink("pipe", folder / "link");
  for (const char* name : {"pipe", "link"}) {
    std::string text;
    std::thread reader([&] { text = read_file(folder / "pipe"); });
    OutputFile(folder / name).write("through");
    reader.join();
    EXPECT_EQ(text, "through") << name;
  }
  EXPECT_TRUE(fs::is_fifo(folder / "pipe"));
}

TEST(OutputFile, RefusesWhatItCannotWrite) {
  const Folder folder;
  write_atomically(folder / "file", "kept");
  fs::permissions(folder / "file", fs::perms::owner_read);
  const auto refuses = [](const fs::path& path, const std::string& why) {
    return throws<std::invalid_argument>([&] { OutputFile{path}; }, {path.string() + "'", why});
  };
  EXPECT_TRUE(refuses(folder / "file", "is read-only"));  // to root too
  EXPECT_TRUE(refuses(folder.path(), "is a folder; it must be a file"));
  EXPECT_TRUE(refuses(folder / "none/file", "no folder '" + (folder / "none").string()));
  EXPECT_TRUE(refuses(folder / "new/", "no folder '" + (folder / "new").string()));
  EXPECT_TRUE(refuses("", "not the name of a file"));
  EXPECT_EQ(read_file(folder / "file"), "kept");
}

TEST(OutputFile, KnowsStandardOutputByItsNames) {
  EXPECT_TRUE(OutputFile("-").is_standard_output());
  EXPECT_TRUE(OutputFile("/dev/stdout").is_standard_output());
  const Folder folder;
  EXPECT_FALSE(OutputFile(folder / "file").is_standard_output());
}

TEST(Lock, IsHeldByOneAtATimeAndNamesItsHolder) {
  const Folder folder;
  {
    const Lock lock(folder / "lock", "the folder");
    std::array<char, 256> host{};
    ASSERT_EQ(::gethostname(host.data(), host.size()), 0);
    EXPECT_TRUE(throws<std::runtime_error>(
        [&] { Lock other(folder / "lock", "the folder"); },
        {"the folder is in use by process " + std::to_string(::getpid()) + " on " + host.data()}));
  }
  const Lock again(folder / "lock", "the folder");
}

}  // namespace
}  // namespace lighthouse::io
