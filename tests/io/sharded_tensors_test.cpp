#include "lighthouse/io/sharded_tensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lighthouse/io/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::io {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using nlohmann::json;
using testing::Folder;
using testing::throws;

using Shapes = std::map<std::string, std::vector<int64_t>>;

class ShardedTensors : public ::testing::Test {
 protected:
  /// A file of parts of tensors.
  /// @param offsets of each part; null: none are given
  fs::path write(const std::string& name, const std::map<std::string, Tensor>& parts,
                 const json& offsets = nullptr) {
    SafeTensors contents{parts, {}};
    json info = json::object();
    for (const auto& [tensor, of] : offsets.items()) info[tensor] = {{"saved_offsets", of}};
    if (!offsets.is_null()) contents.metadata["DCP_SHARDING_INFO"] = info.dump();
    write_safetensors(folder_ / name, contents);
    return folder_ / name;
  }
  /// Reading those files gives an error that has the path of the named file and the other parts.
  ::testing::AssertionResult refused(const std::vector<fs::path>& files, const Shapes& shapes,
                                     const std::string& file, const std::string& what) {
    return throws<std::runtime_error>([&] { read_sharded_tensors(files, shapes); },
                                      {(folder_ / file).string(), "'a'", what});
  }

  const Folder folder_;
  const Tensor a_ = at::arange(15, at::kFloat).view({5, 3});
  const Shapes shapes_{{"a", {5, 3}}};
};

TEST_F(ShardedTensors, AreJoinedFromPartsInAnyOrder) {
  const Tensor b = at::arange(4), scalar = at::full({}, 7.5);
  const auto first = write("1", {{"a", a_.narrow(0, 0, 2)}, {"b", b}}, {{"a", {0, 0}}, {"b", {0}}});
  const auto middle = write("2", {{"a", a_.narrow(0, 2, 1)}}, {{"a", {2, 0}}});
  const auto last = write("3", {{"a", a_.narrow(0, 3, 2)}, {"scalar", scalar}},
                          {{"a", {3, 0}}, {"scalar", json::array()}});
  const auto read =
      read_sharded_tensors({last, first, middle}, {{"a", {5, 3}}, {"b", {4}}, {"scalar", {}}});
  ASSERT_EQ(read.size(), 3u);
  EXPECT_TRUE(read.at("a").equal(a_));
  EXPECT_TRUE(read.at("b").equal(b));
  EXPECT_TRUE(read.at("scalar").equal(scalar));
}

TEST_F(ShardedTensors, AreWholeWhereNothingElseIsSaid) {
  const auto read = read_sharded_tensors({write("1", {{"a", a_}})}, shapes_);
  EXPECT_TRUE(read.at("a").equal(a_));
  const Tensor none = a_.narrow(0, 0, 0);
  EXPECT_TRUE(
      read_sharded_tensors({write("1", {{"a", none}})}, {{"a", {0, 3}}}).at("a").equal(none));
}

TEST_F(ShardedTensors, AreRefusedWithGapsAndOverlaps) {
  const auto first = write("first", {{"a", a_.narrow(0, 0, 2)}});
  const auto part = [&](int64_t begin, int64_t rows) {
    return write("part", {{"a", a_.narrow(0, begin, rows)}}, {{"a", {begin, 0}}});
  };
  EXPECT_TRUE(refused({first, part(3, 2)}, shapes_, "part", "rows from 2 on are in no file"));
  EXPECT_TRUE(refused({first, part(2, 2)}, shapes_, "part", "ends after 4 rows"));
  EXPECT_TRUE(refused({part(1, 4)}, shapes_, "part", "begins at row 1; rows from 0"));
  EXPECT_TRUE(refused({first, part(1, 4)}, shapes_, "part", "has row 1"));
  EXPECT_TRUE(refused({first, part(1, 4)}, shapes_, "first", "has too"));
  EXPECT_TRUE(refused({first, first, part(2, 3)}, shapes_, "first", "has row 0"));
  const auto whole = write("whole", {{"a", a_}});
  EXPECT_TRUE(refused({whole, write("again", {{"a", a_}})}, shapes_, "again", "has row 0"));
}

TEST_F(ShardedTensors, AreRefusedWithOtherShapesTypesAndNames) {
  const auto part = [&](const Tensor& rows, const json& offsets) {
    return write("part", {{"a", rows}}, {{"a", offsets}});
  };
  const Tensor two = a_.narrow(0, 0, 2);
  EXPECT_TRUE(refused({part(two, {4, 0})}, shapes_, "part", "2 rows from row 4"));
  EXPECT_TRUE(refused({part(two, {6, 0})}, shapes_, "part", "from row 6"));
  EXPECT_TRUE(refused({part(two, {0, 1})}, shapes_, "part", "[0,1]"));
  EXPECT_TRUE(refused({part(two, {0})}, shapes_, "part", "[0]"));
  EXPECT_TRUE(refused({part(two, "2")}, shapes_, "part", "\"2\""));
  EXPECT_TRUE(refused({part(two, {-1, 0})}, shapes_, "part", "[-1,0]"));
  EXPECT_TRUE(refused({part(a_.narrow(1, 0, 2), {0, 0})}, shapes_, "part", "[5, 2]"));
  EXPECT_TRUE(refused({part(a_, {0, 0})}, {{"a", {4, 3}}}, "part", "has 5 rows"));
  EXPECT_TRUE(refused({write("part", {{"a", a_}})}, {{"a", {4, 3}}}, "part", "has 5 rows"));
  EXPECT_TRUE(refused({write("part", {{"a", a_}})}, {}, "part", "not in the manifest"));
  EXPECT_TRUE(refused({write("part", {})}, shapes_, "part", "is in none of the files"));
  EXPECT_TRUE(
      refused({write("first", {{"a", two}}), part(a_.narrow(0, 2, 3).to(at::kDouble), {2, 0})},
              shapes_, "part", "is of type Double"));
  EXPECT_TRUE(throws<std::runtime_error>(
      [&] { read_sharded_tensors({folder_ / "missing"}, shapes_); }, {"missing"}));
  write_safetensors(folder_ / "part", {{{"a", a_}}, {{"DCP_SHARDING_INFO", "{"}}});
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_sharded_tensors({folder_ / "part"}, shapes_); },
                                         {"part", "DCP_SHARDING_INFO"}));
}

}  // namespace
}  // namespace lighthouse::io
