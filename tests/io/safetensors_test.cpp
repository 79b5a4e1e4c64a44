#include "lighthouse/io/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "lighthouse/io/file.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::io {
namespace {

using nlohmann::json;
using testing::Folder;
using testing::throws;

/// The bytes of a file with that header, however wrong, and that many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes = 0) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\0');
}

/// Two floats called a and three bytes called b.
json good_header() {
  return {{"a", {{"dtype", "F32"}, {"shape", {2}}, {"data_offsets", {0, 8}}}},
          {"b", {{"dtype", "U8"}, {"shape", {3, 1}}, {"data_offsets", {8, 11}}}}};
}

class SafeTensorsFile : public ::testing::Test {
 protected:
  SafeTensors read(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
    return read_safetensors(path_);
  }
  ::testing::AssertionResult refused(const std::string& bytes,
                                     std::initializer_list<std::string> parts) const {
    const auto result = throws<std::runtime_error>([&] { read(bytes); }, parts);
    return result ? throws<std::runtime_error>([&] { read(bytes); }, {path_.string()}) : result;
  }
  /// The good header, changed, is refused.
  template <class Change>
  ::testing::AssertionResult refused_after(const Change& change,
                                           std::initializer_list<std::string> parts) const {
    json header = good_header();
    change(header);
    return refused(file_of(header.dump(), 11), parts);
  }

  Folder folder_;
  std::filesystem::path path_ = folder_ / "file.safetensors";
};

TEST_F(SafeTensorsFile, ReadsWhatItWrote) {
  SafeTensors contents;
  const at::Tensor values = at::randn({3, 5, 2});
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kLong,
                                    at::kInt, at::kByte, at::kBool}) {
    contents.tensors[c10::toString(type)] = values.mul(100).to(type);
  }
  contents.tensors["strided"] = values.transpose(0, 2).slice(1, 0, 5, 2);
  contents.tensors["a parameter"] = at::randn({4}).requires_grad_();
  contents.tensors["a scalar"] = at::full({}, 7.5);
  contents.tensors["empty"] = at::empty({2, 0, 3});
  contents.tensors["\"quoted\"\n\xc3\xa9"] = at::arange(3);
  contents.metadata = {{"format", "pt"}, {"", "line\n\"quoted\""}};
  write_safetensors(path_, contents);

  const SafeTensors read = read_safetensors(path_);
  EXPECT_EQ(read.metadata, contents.metadata);
  ASSERT_EQ(read.tensors.size(), contents.tensors.size());
  for (const auto& [name, tensor] : contents.tensors) {
    const at::Tensor& back = read.tensors.at(name);
    EXPECT_EQ(back.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(back.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(back.equal(tensor.detach())) << name;
  }
}

TEST_F(SafeTensorsFile, NothingIsSomething) {
  write_safetensors(path_, {});
  const SafeTensors read = read_safetensors(path_);
  EXPECT_TRUE(read.tensors.empty());
  EXPECT_TRUE(read.metadata.empty());
}

TEST_F(SafeTensorsFile, TheSameContentsGiveTheSameBytes) {
  SafeTensors contents;
  contents.tensors = {{"b", at::arange(3, at::kByte)}, {"a", at::arange(2, at::kDouble)}};
  contents.metadata = {{"x", "1"}, {"w", "2"}};
  write_safetensors(path_, contents);
  const std::string bytes = read_file(path_);
  contents.tensors["a"] = at::arange(4, at::kDouble).slice(0, 0, 2);
  write_safetensors(path_, contents);
  EXPECT_EQ(read_file(path_), bytes);
  // The data begins at a multiple of 8, and the wider type first, so that all is aligned.
  EXPECT_EQ((bytes.size() - 16 - 3) % 8, 0U);
  const std::string data = bytes.substr(bytes.size() - 3);
  EXPECT_EQ(data, std::string("\0\1\2", 3));
}

TEST_F(SafeTensorsFile, ReadsTheGoodFile) {
  const SafeTensors read = this->read(file_of(good_header().dump() + "   ", 11));
  EXPECT_EQ(read.tensors.at("a").sizes(), at::IntArrayRef({2}));
  EXPECT_EQ(read.tensors.at("b").sizes(), at::IntArrayRef({3, 1}));
}

TEST_F(SafeTensorsFile, RefusesItCutAtEveryByte) {
  const std::string whole = file_of(good_header().dump(), 11);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    EXPECT_TRUE(refused(whole.substr(0, bytes), {"is not a safetensors file"})) << bytes;
  }
  EXPECT_TRUE(refused(whole.substr(0, whole.size() - 1), {"take 11 bytes, but 10", "cut short"}));
  EXPECT_TRUE(refused(whole + "x", {"take 11 bytes, but 12"}));
}

TEST_F(SafeTensorsFile, SurvivesEveryChangedByteOfTheHeader) {
  const std::string whole = file_of(good_header().dump(), 11);
  std::mt19937 random(1);
  int refused_files = 0;
  for (size_t i = 0; i + 11 < whole.size(); ++i) {
    for (int j = 0; j < 4; ++j) {
      std::string changed = whole;
      changed[i] = static_cast<char>(j == 0 ? changed[i] ^ 1 : static_cast<int>(random() & 255U));
      try {
        // What is still a safetensors file has 11 bytes of tensors.
        size_t bytes = 0;
        for (const auto& [name, tensor] : read(changed).tensors) bytes += tensor.nbytes();
        EXPECT_EQ(bytes, 11U);
      } catch (const std::runtime_error& error) {
        EXPECT_NE(std::string(error.what()).find(path_.string()), std::string::npos);
        ++refused_files;
      }
    }
  }
  EXPECT_GT(refused_files, 200);
}

TEST_F(SafeTensorsFile, NamesWhatIsWrongWithTheHeader) {
  EXPECT_TRUE(refused("", {"it has 0 bytes"}));
  EXPECT_TRUE(refused(file_of(""), {"its header has 0 bytes"}));
  EXPECT_TRUE(refused(std::string(8, '\xff') + "{}", {"18446744073709551615 bytes", "100000000"}));
  EXPECT_TRUE(refused(file_of(" {}"), {"begins with byte 32", "'{'"}));
  EXPECT_TRUE(refused(file_of("[]"), {"begins with byte 91"}));
  EXPECT_TRUE(refused(file_of("{"), {"is not JSON"}));
  EXPECT_TRUE(refused(file_of("{}x"), {"is not JSON"}));
  EXPECT_TRUE(refused(file_of("{\"\xff\":1}"), {"is not JSON"}));
  EXPECT_TRUE(refused(file_of(R"({"a":1})"), {"tensor 'a'", "is described by 1", "data_offsets"}));
  EXPECT_TRUE(refused(file_of("{\"a\":" + std::string(100000, '[')), {"nested too deeply"}));
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_TRUE(
      refused(file_of("{\"a\":" + entry + ",\"a\":" + entry + "}"), {"the key \"a\" twice"}));
  EXPECT_TRUE(
      refused(file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
              {"the key \"dtype\" twice"}));
  EXPECT_TRUE(refused(file_of(R"({"__metadata__":{"a":1}})"), {"__metadata__", "strings"}));
  EXPECT_TRUE(refused(file_of(R"({"__metadata__":[]})"), {"__metadata__", "strings"}));
}

TEST_F(SafeTensorsFile, NamesWhatIsWrongWithATensor) {
  EXPECT_TRUE(refused_after([](json& h) { h["a"].erase("shape"); }, {"tensor 'a'", "shape"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["more"] = 1; }, {"tensor 'a'", "no other"}));
  EXPECT_TRUE(
      refused_after([](json& h) { h["a"]["dtype"] = "F31"; }, {"tensor 'a'", "\"F31\"", "BF16"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["dtype"] = 32; }, {"tensor 'a'", "dtype 32"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["shape"] = 2; }, {"tensor 'a'", "shape 2"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["shape"] = {-2}; }, {"tensor 'a'", "[-2]"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["shape"] = {2.0}; }, {"tensor 'a'", "[2.0]"}));
  EXPECT_TRUE(
      refused_after([](json& h) { h["a"]["shape"] = {3}; }, {"tensor 'a'", "[0,8]", "12 bytes"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["dtype"] = "F64"; }, {"tensor 'a'", "16 bytes"}));
  static constexpr uint64_t kHuge = uint64_t{1} << 62;
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["shape"] = {kHuge, 4}; }, {"too many elements"}));
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["a"]["shape"] = {kHuge, 0, 4};
      },
      {"too many elements"}));
  EXPECT_TRUE(refused_after([](json& h) { h["a"]["data_offsets"] = {0}; }, {"tensor 'a'", "[0]"}));
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["a"]["data_offsets"] = {8, 0};
      },
      {"tensor 'a'", "[8,0]"}));
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["a"]["data_offsets"] = {-8, 0};
      },
      {"tensor 'a'", "[-8,0]"}));
  // A gap, an overlap, two tensors in one place, one past the end.
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["b"]["data_offsets"] = {9, 12};
      },
      {"tensor 'b' begins at byte 9", "8"}));
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["b"]["data_offsets"] = {7, 10};
      },
      {"tensor 'b' begins at byte 7", "8"}));
  EXPECT_TRUE(refused_after([](json& h) { h["c"] = h["b"]; }, {"begins at byte 8", "11"}));
  EXPECT_TRUE(refused_after(
      [](json& h) {
        h["a"]["data_offsets"] = {4, 12};
      },
      {"tensor 'a' begins at byte 4", "0"}));
}

TEST_F(SafeTensorsFile, RefusesABoolThatIsNone) {
  std::string bytes = file_of(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", 2);
  bytes.back() = 1;
  EXPECT_EQ(read(bytes).tensors.at("a").sum().item<int64_t>(), 1);
  bytes.back() = 2;
  EXPECT_TRUE(refused(bytes, {"tensor 'a'", "BOOL"}));
}

TEST_F(SafeTensorsFile, NamesWhatItCannotWrite) {
  const auto writes = [&](const std::string& name, const at::Tensor& tensor) {
    return [&, name, tensor] { write_safetensors(path_, {{{name, tensor}}, {}}); };
  };
  EXPECT_TRUE(throws<std::runtime_error>(writes("a", at::arange(2, at::kShort)),
                                         {path_.string(), "tensor 'a'", "Short", "int64"}));
  EXPECT_TRUE(throws<std::runtime_error>(writes("a", {}), {"tensor 'a'", "undefined"}));
  EXPECT_TRUE(throws<std::runtime_error>(writes("__metadata__", at::arange(2)), {"__metadata__"}));
  EXPECT_TRUE(throws<std::runtime_error>(writes("\xff", at::arange(2)), {"UTF-8"}));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SafeTensorsFile, NamesAFileThatIsNotThere) {
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_safetensors(path_); },
                                         {path_.string(), "No such file"}));
  EXPECT_TRUE(throws<std::runtime_error>([&] { read_safetensors(folder_.path()); },
                                         {folder_.path().string(), "directory"}));
}

}  // namespace
}  // namespace lighthouse::io
