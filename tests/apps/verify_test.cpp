#include "apps/lighthouse/verbs/verify.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <sstream>

#include "apps/lighthouse/verbs.h"
#include "lighthouse/io/file.h"
#include "tests/support/device.h"
#include "tests/support/folder.h"

namespace lighthouse::app {
namespace {

using testing::Folder;

const std::filesystem::path kGolden = LIGHTHOUSE_GOLDEN_FOLDER;

struct Outcome {
  int status;
  std::string out;
  std::string err;

  std::vector<std::string> lines() const {
    std::istringstream stream(out);
    std::vector<std::string> result;
    for (std::string line; std::getline(stream, line);) result.push_back(line);
    return result;
  }
};

Outcome verify_paths(const std::vector<std::filesystem::path>& files, double tolerance = 1e-5) {
  std::ostringstream out;
  std::ostringstream err;
  const int status = verify_files(files, tolerance, testing::device(), out, err);
  return {status, out.str(), err.str()};
}

class Verify : public ::testing::Test {
 protected:
  using Change = std::function<void(io::SafeTensors&)>;

  /// Verifies a golden file after a change.
  Outcome after(const Change& change, double tolerance = 1e-5) const {
    io::SafeTensors file = io::read_safetensors(kGolden / "golden_b.safetensors");
    change(file);
    io::write_safetensors(folder_ / "file", file);
    return verify_paths({folder_ / "file"}, tolerance);
  }
  void expect_failed(const Change& change, const std::string& tensor) const {
    const Outcome outcome = after(change);
    EXPECT_EQ(outcome.status, kFailed) << outcome.out << outcome.err;
    for (const std::string& line : outcome.lines()) {
      const bool is_tensor = line.find("  " + tensor + " ") != std::string::npos;
      EXPECT_EQ(line.find("FAILED") != std::string::npos, is_tensor) << line;
    }
  }
  void expect_unusable(const Change& change, const std::string& why) const {
    const Outcome outcome = after(change);
    EXPECT_EQ(outcome.status, kUnusable) << outcome.out;
    EXPECT_NE(outcome.err.find(why), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find((folder_ / "file").string()), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("lighthouse: ", 0), 0U) << outcome.err;
  }

  Folder folder_;
};

TEST_F(Verify, AcceptsEveryGoldenFile) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  ASSERT_EQ(files.size(), 10U);
  const Outcome outcome = verify_paths(files);
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  EXPECT_EQ(outcome.lines().size(), 10U * 5U) << outcome.out;
}

TEST_F(Verify, FailsWhatDiffers) {
  for (const char* name : {"out", "grad_q", "grad_k", "grad_v"}) {
    const auto largest = [=](io::SafeTensors& f) { return f.tensors[name].abs().max(); };
    expect_failed([=](io::SafeTensors& f) { f.tensors[name][0][0][0][0] += 1e-4 * largest(f); },
                  name);
    expect_failed([=](io::SafeTensors& f) { f.tensors[name].neg_(); }, name);
    expect_failed([=](io::SafeTensors& f) { f.tensors[name].zero_(); }, name);
    expect_failed(
        [=](io::SafeTensors& f) {
          f.tensors[name][0][1][1][1] = std::numeric_limits<double>::quiet_NaN();
        },
        name);
    expect_failed(
        [=](io::SafeTensors& f) {
          f.tensors[name][0][1][1][1] = std::numeric_limits<double>::infinity();
        },
        name);
  }
  // Indices must agree exactly, and in order.
  expect_failed([](io::SafeTensors& f) { f.tensors["index"][0][1][5] += 1; }, "index");
  expect_failed(
      [](io::SafeTensors& f) { f.tensors["index"] = f.tensors["index"].flip({2}).contiguous(); },
      "index");
}

TEST_F(Verify, SaysWhereAnIndexDiffers) {
  const Outcome outcome = after([](io::SafeTensors& f) { f.tensors["index"][0][1][5] = 77777; });
  EXPECT_NE(outcome.out.find("1 of 1536 differ, first [0, 1, 5]"), std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("not 77777"), std::string::npos) << outcome.out;
}

TEST_F(Verify, TheToleranceDecides) {
  const auto change = [](io::SafeTensors& f) {
    f.tensors["out"][0][0][0][0] += 1e-3 * f.tensors["out"].abs().max();
  };
  EXPECT_EQ(after(change, 1e-2).status, 0);
  EXPECT_EQ(after(change, 1e-4).status, kFailed);
  EXPECT_EQ(after([](io::SafeTensors&) {}, 1e-12).status, kFailed);
}

TEST_F(Verify, ComparesWhatIsThere) {
  const Outcome outcome = after([](io::SafeTensors& f) {
    for (const char* name : {"index", "grad_q", "grad_k", "grad_v", "grad_out"})
      f.tensors.erase(name);
  });
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.lines().size(), 1U) << outcome.out;
}

/// With other pieces, or without any, and by the other rule, the results are others.
TEST_F(Verify, ReadsPiecesAndTheRuleFromTheMetadata) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"local", "48"}, {"local", "0"}, {"local_shift", "1"}, {"selection", "published"}}) {
    io::SafeTensors file = io::read_safetensors(kGolden / "local_a.safetensors");
    file.metadata[key] = value;
    io::write_safetensors(folder_ / "file", file);
    EXPECT_EQ(verify_paths({folder_ / "file"}).status, kFailed) << key << " " << value;
  }
}

TEST_F(Verify, NamesWhatIsNotOfTheForm) {
  expect_unusable([](io::SafeTensors& f) { f.metadata["local"] = "-1"; }, "local as '-1'");
  expect_unusable([](io::SafeTensors& f) { f.metadata["local_shift"] = "4"; }, "local_shift is 4");
  expect_unusable([](io::SafeTensors& f) { f.metadata["selection"] = "random"; },
                  "selection is 'random'");
  expect_unusable([](io::SafeTensors& f) { f.tensors.erase("k"); }, "no tensor 'k'");
  expect_unusable([](io::SafeTensors& f) { f.tensors.erase("grad_out"); }, "no grad_out");
  expect_unusable([](io::SafeTensors& f) { f.tensors["grad_Q"] = f.tensors["grad_q"]; },
                  "'grad_Q'");
  expect_unusable([](io::SafeTensors& f) { f.metadata.erase("top_k"); }, "no top_k");
  expect_unusable([](io::SafeTensors& f) { f.metadata["N"] = "1e3"; }, "N as '1e3'");
  expect_unusable([](io::SafeTensors& f) { f.metadata["N"] = "0"; }, "N as '0'");
  expect_unusable([](io::SafeTensors& f) { f.metadata["N"] = "1023"; }, "'q' has the shape");
  expect_unusable([](io::SafeTensors& f) { f.metadata["top_k"] = "100"; }, "budget is 100");
  expect_unusable([](io::SafeTensors& f) { f.tensors["out"] = f.tensors["out"].slice(2, 1); },
                  "'out' has the shape");
  expect_unusable([](io::SafeTensors& f) { f.tensors["v"] = f.tensors["v"].slice(2, 1); },
                  "'v' has the shape");
  expect_unusable([](io::SafeTensors& f) { f.tensors["q"] = f.tensors["q"].to(at::kInt); },
                  "'q' is of type Int");
  expect_unusable([](io::SafeTensors& f) { f.tensors["out"] = f.tensors["out"].to(at::kInt); },
                  "'out' is of type Int");
  expect_unusable(
      [](io::SafeTensors& f) { f.tensors["index"] = f.tensors["index"].to(at::kFloat); },
      "'index' is of type Float");
  expect_unusable(
      [](io::SafeTensors& f) {
        for (const char* name : {"index", "out", "grad_q", "grad_k", "grad_v"})
          f.tensors.erase(name);
      },
      "nothing to compare");
}

TEST_F(Verify, AnUnusableFileDoesNotHideTheOthers) {
  io::write_atomically(folder_ / "garbage", "garbage");
  const Outcome outcome = verify_paths(
      {folder_ / "garbage", folder_ / "none", kGolden / "golden_b.safetensors"}, 1e-12);
  EXPECT_EQ(outcome.status, kUnusable);
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 2) << outcome.err;
  EXPECT_EQ(outcome.lines().size(), 5U);
}

}  // namespace
}  // namespace lighthouse::app
