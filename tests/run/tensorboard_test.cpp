#include "lighthouse/run/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/run/support.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;

TEST(TensorBoard, HasTheChecksumOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);  // the check value of CRC-32C
  EXPECT_EQ(crc32c(""), 0u);
}

/// The contents of the records; throws where a length does not fit.
std::vector<std::string> records(const fs::path& file) {
  std::string rest = io::read_file(file);
  std::vector<std::string> found;
  while (!rest.empty()) {
    uint64_t length = 0;
    std::memcpy(&length, rest.data(), sizeof length);
    found.push_back(rest.substr(12, length));
    rest = rest.substr(12 + length + 4);
  }
  return found;
}

TEST(TensorBoard, WritesAnEventFileForEachTimeThatARunGoesOn) {
  const Folder folder;
  for (const int64_t done : {0, 3}) {
    TensorBoard board(folder / "tensorboard", done);
    board.write(StepMetrics{done + 1, "s", "dense", 2.5, 1e-3, 0.5, 64, 1, 100, 4096});
    board.write(EvalMetrics{done + 1, "s", "after", 2.25, 2.5, 64, 1});
  }
  std::vector<fs::path> files{fs::directory_iterator(folder / "tensorboard"),
                              fs::directory_iterator()};
  ASSERT_EQ(files.size(), 2u);
  for (const fs::path& file : files) {
    EXPECT_TRUE(file.filename().string().starts_with("events.out.tfevents.")) << file;
    const auto all = records(file);
    ASSERT_EQ(all.size(), 2u + 7 + 2);
    EXPECT_NE(all[0].find("brain.Event:2"), std::string::npos);
    EXPECT_NE(all[2].find("train/loss"), std::string::npos);
    EXPECT_NE(all[2].find(std::string("\x15\x00\x00\x20\x40", 5)), std::string::npos);  // 2.5
    EXPECT_NE(all[6].find("train/seconds"), std::string::npos);
    EXPECT_NE(all[9].find("eval/dense_loss"), std::string::npos);
  }
}

}  // namespace
}  // namespace lighthouse::run
