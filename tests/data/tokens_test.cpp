#include "lighthouse/data/tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>

#include "lighthouse/data/loader.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::data {
namespace {

using testing::throws;
using Ids = std::vector<int64_t>;

Ids counting(int64_t first, size_t count) {
  Ids ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

class TokensTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
    return folder / name;
  }
  template <class T>
  static std::string bytes_of(const std::vector<T>& numbers) {
    return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
  }

  const testing::Folder folder;
};

TEST_F(TokensTest, AreWhatWasWritten) {
  for (const int64_t vocabulary : {50257, 65536, 65537, 128256}) {
    const Ids ids{0, 7, vocabulary - 1, 1};
    write_tokens(folder / "a.bin", ids, vocabulary);
    EXPECT_EQ(std::filesystem::file_size(folder / "a.bin"),
              32u + 4 * (vocabulary <= 65536 ? 2 : 4));
    const Tokens tokens = Tokens::map(folder / "a.bin");
    EXPECT_EQ(tokens.size(), 4u);
    EXPECT_FALSE(tokens.is_text());
    EXPECT_EQ(tokens.first(99), ids);
  }
  EXPECT_THROW(write_tokens(folder / "b.bin", Ids{5}, 5), std::invalid_argument);
  EXPECT_THROW(write_tokens(folder / "b.bin", Ids{-1}, 5), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(folder / "b.bin"));
}

TEST_F(TokensTest, AreReadAsOthersWriteThem) {
  const std::vector<uint16_t> narrow{5, 6, 65535};
  const std::vector<uint32_t> wide{5, 6, 128000};
  EXPECT_EQ(Tokens::map(write("nanogpt.bin", bytes_of(narrow))).first(9), (Ids{5, 6, 65535}));
  std::vector<int32_t> header(256);
  header[0] = 20240520;
  header[1] = 1;
  header[2] = 3;
  const std::string gpt2 = bytes_of(header) + bytes_of(narrow);
  EXPECT_EQ(Tokens::map(write("gpt2.bin", gpt2)).first(9), (Ids{5, 6, 65535}));
  header[0] = 20240801;
  header[1] = 7;
  const std::string llama3 = bytes_of(header) + bytes_of(wide);
  EXPECT_EQ(Tokens::map(write("llama3.bin", llama3)).first(9), (Ids{5, 6, 128000}));
}

TEST_F(TokensTest, NameTheFileThatIsDamaged) {
  const auto fails = [&](const std::filesystem::path& path, const std::string& why) {
    return throws<std::runtime_error>([&] { Tokens::map(path); }, {path.string(), why});
  };
  write_tokens(folder / "whole.bin", counting(1, 100), 1000);
  std::string bytes;
  {
    std::ifstream in(folder / "whole.bin", std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  EXPECT_TRUE(
      fails(write("cut.bin", bytes.substr(0, bytes.size() - 2)), "its header says 100 ids"));
  EXPECT_TRUE(fails(write("long.bin", bytes + "xx"), "its header says 100 ids"));
  EXPECT_TRUE(fails(write("short.bin", bytes.substr(0, 20)), "fewer than a header"));
  bytes[8] = 9;
  EXPECT_TRUE(fails(write("version.bin", bytes), "version 9"));
  EXPECT_TRUE(fails(write("odd.bin", "abc"), "no whole number"));
  EXPECT_TRUE(fails(write("empty.bin", ""), "is empty"));
  EXPECT_TRUE(fails(folder / "missing.bin", "cannot be read"));
}

TEST_F(TokensTest, NameTheIdThatIsNoneOfTheVocabulary) {
  write_tokens(folder / "a.bin", counting(0, 300), 1000);
  const Tokens tokens = Tokens::map(folder / "a.bin").slice(10, 280);
  Ids out(280);
  tokens.copy(0, 246, 256, out.data());
  EXPECT_EQ(out[245], 255);
  EXPECT_TRUE(
      throws<std::runtime_error>([&] { tokens.copy(0, 280, 256, out.data()); },
                                 {"a.bin", "the id 256 at position 256", "vocabulary has 256"}));
}

TEST_F(TokensTest, AreJoinedAndSliced) {
  write_tokens(folder / "a.bin", counting(0, 10), 1000);
  write_tokens(folder / "b.bin", counting(10, 10), 100000);
  const Tokens all = Tokens::join({Tokens::map(folder / "a.bin"), Tokens(std::vector<uint8_t>{}),
                                   Tokens::map(folder / "b.bin")});
  EXPECT_EQ(all.first(99), counting(0, 20));
  for (const auto& [first, count] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 20}, {0, 10}, {10, 10}, {7, 6}, {9, 1}, {10, 1}, {19, 1}, {5, 0}, {20, 0}}) {
    EXPECT_EQ(all.slice(first, count).first(99), counting(static_cast<int64_t>(first), count));
  }
  EXPECT_THROW(all.slice(15, 6), std::invalid_argument);
}

TEST_F(TokensTest, OutliveTheirFilesName) {
  write_tokens(folder / "a.bin", counting(0, 100), 1000);
  const Tokens tokens = Tokens::map(folder / "a.bin");
  std::filesystem::remove(folder / "a.bin");
  EXPECT_EQ(tokens.first(100), counting(0, 100));
}

TEST_F(TokensTest, FingerprintsSeeWhatIsThere) {
  const auto of = [&](Ids ids) {
    write_tokens(folder / "a.bin", ids, 100000);
    return Tokens::map(folder / "a.bin").fingerprint();
  };
  Ids ids = counting(0, 5000);
  const uint64_t fingerprint = of(ids);
  EXPECT_EQ(of(ids), fingerprint);
  ids[2500] = 7;
  EXPECT_NE(of(ids), fingerprint);
  EXPECT_NE(of(counting(0, 4999)), fingerprint);
  // Of a large file samples are taken, the first and the last bytes among them.
  Ids large(200000, 3);
  const uint64_t of_large = of(large);
  large.back() = 4;
  EXPECT_NE(of(large), of_large);
  EXPECT_NE(of(Ids(200001, 3)), of_large);
}

TEST_F(TokensTest, AreShuffledInPiecesOfOneSize) {
  const size_t piece = Loader::kPiece;
  Ids ids(2 * piece + 5);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i / piece) * 1000;
  write_tokens(folder / "a.bin", ids, 60000);
  bool moved = false;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    Loader loader(Tokens::map(folder / "a.bin"), seed, 60000);
    const at::Tensor epoch = loader.next(1, static_cast<int64_t>(ids.size())).tokens;
    const auto* begin = epoch.const_data_ptr<int64_t>();
    Ids found(begin, begin + ids.size());
    moved |= found != ids;
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, ids);
  }
  EXPECT_TRUE(moved);
}

}  // namespace
}  // namespace lighthouse::data
