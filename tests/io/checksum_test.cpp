#include "lighthouse/io/checksum.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::io {
namespace {

using testing::Folder;
using testing::throws;

TEST(Checksum, IsXxh64) {
  const Folder folder;
  const auto sum_of = [&](const std::string& bytes) {
    std::ofstream(folder / "file", std::ios::binary) << bytes;
    return xxh64(folder / "file");
  };
  // From the specification's own implementation.
  EXPECT_EQ(sum_of(""), "ef46db3751d8e999");
  EXPECT_EQ(sum_of("abc"), "44bc2cf5ad770999");
  // Longer than the pieces that a file is read in.
  std::string bytes(3 << 20, 'x');
  const std::string sum = sum_of(bytes);
  bytes[(1 << 20) + 5] = 'y';
  EXPECT_NE(sum_of(bytes), sum);
  EXPECT_EQ(sum, "2b13b122ad0b4715");
}

TEST(Checksum, NamesAFileThatCannotBeRead) {
  const Folder folder;
  const std::string missing = (folder / "missing").string(), path = folder.path().string();
  EXPECT_TRUE(throws<std::runtime_error>([&] { xxh64(missing); }, {missing, "No such file"}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { xxh64(path); }, {path, "directory"}));
}

}  // namespace
}  // namespace lighthouse::io
