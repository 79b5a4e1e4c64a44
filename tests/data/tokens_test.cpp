#include "lighthouse/data/tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>

#include "lighthouse/core/check.h"
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

TEST_F(TokensTest, FindAnId) {
  Ids ids = counting(0, 300);
  for (const uint64_t place : {0, 63, 64, 130, 299}) ids[place] = 299;
  for (const int64_t vocabulary : {300, 70000}) {
    const auto path = folder / message(vocabulary, ".bin");
    write_tokens(path, ids, vocabulary);
    const Tokens tokens = Tokens::join({Tokens::map(path), Tokens::map(path)});
    using Places = std::vector<uint64_t>;
    EXPECT_EQ(tokens.places_of(299, 0, 300), (Places{0, 63, 64, 130, 299}));
    EXPECT_EQ(tokens.places_of(299, 64, 237), (Places{64, 130, 299, 300}));
    EXPECT_EQ(tokens.places_of(299, 65, 65), Places{});
    EXPECT_EQ(tokens.places_of(int64_t{1} << 40, 0, 600), Places{});
  }
  const Tokens text(std::vector<uint8_t>{'a', 0, 'b', 0});
  EXPECT_EQ(text.places_of(0, 0, 4), (std::vector<uint64_t>{1, 3}));
  EXPECT_TRUE(text.places_of(256, 0, 4).empty()) << "which no byte is";
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
  EXPECT_TRUE(fails(folder / "missing.bin", "cannot read"));
}

TEST_F(TokensTest, RefuseHeadersThatAreNotKnown) {
  const auto fails = [&](const std::string& bytes, std::initializer_list<std::string> why) {
    const auto path = write("a.bin", bytes);
    return throws<std::runtime_error>([&] { Tokens::map(path); }, why);
  };
  std::vector<int32_t> header(256);
  for (const auto& [date, version] : std::vector<std::pair<int32_t, int32_t>>{
           {20240520, 2}, {20240801, 1}, {20240326, 3}, {20250101, 1}}) {
    header[0] = date;
    header[1] = version;
    header[2] = 1;
    EXPECT_TRUE(
        fails(message(bytes_of(header), "xx"),
              {"a.bin' begins like one of llm.c", std::to_string(date),
               message("version ", version), "20240520, version 1, and 20240801, version 7"}));
  }
  header[0] = 20240520;
  header[1] = 1;
  EXPECT_TRUE(fails(bytes_of(header).substr(0, 100), {"cut short"}));
  EXPECT_TRUE(fails(std::string("PK\x03\x04......", 10), {"a zip archive", "no token ids"}));
  EXPECT_TRUE(fails("\x93NUMPY..", {"NumPy", "no token ids"}));
  // Two ids that are no date.
  const std::vector<uint16_t> ids{50256, 308, 7};
  EXPECT_EQ(Tokens::map(write("a.bin", bytes_of(ids))).first(9), (Ids{50256, 308, 7}));
}

TEST_F(TokensTest, AreCheckedAgainstAVocabularyAtOnce) {
  // Where its header says a vocabulary, that counts.
  write_tokens(folder / "a.bin", counting(0, 300), 1000);
  const Tokens known = Tokens::map(folder / "a.bin");
  known.check_vocabulary(1000);
  EXPECT_TRUE(throws<std::runtime_error>([&] { known.check_vocabulary(999); },
                                         {"a.bin' has a vocabulary of 1000", "has 999"}));
  // Where there is none, each id does: also one that no vector has, and in any slice.
  for (const size_t at : {0u, 63u, 64u, 9999u, 10002u}) {
    std::vector<uint16_t> ids(10003, 499);
    ids[at] = 500;
    const Tokens tokens = Tokens::map(write("b.bin", bytes_of(ids)));
    tokens.check_vocabulary(501);
    const std::string where = "the id 500 at position " + std::to_string(at);
    EXPECT_TRUE(throws<std::runtime_error>([&] { tokens.check_vocabulary(500); },
                                           {"b.bin' has " + where, "has 500"}));
    EXPECT_TRUE(throws<std::runtime_error>(
        [&] { tokens.slice(at, 10003 - at).check_vocabulary(500); }, {where}));
  }
  std::vector<int32_t> header(256);
  header[0] = 20240801;
  header[1] = 7;
  header[2] = 2;
  const std::vector<uint32_t> wide{5, 128000};
  const Tokens llama3 = Tokens::map(write("c.bin", bytes_of(header) + bytes_of(wide)));
  llama3.check_vocabulary(128256);
  EXPECT_TRUE(throws<std::runtime_error>([&] { llama3.check_vocabulary(128000); },
                                         {"the id 128000 at position 1"}));
}

TEST_F(TokensTest, TellHowTheCheckGetsOn) {
  std::filesystem::resize_file(write("a.bin", ""), (uint64_t{1} << 28) + 2);
  std::vector<uint64_t> told;
  Tokens::map(folder / "a.bin")
      .check_vocabulary(300, [&](const char* what, uint64_t done, uint64_t all) {
        EXPECT_STREQ(what, "checking token ids");
        EXPECT_EQ(all, (uint64_t{1} << 28) + 2);
        told.push_back(done);
      });
  EXPECT_EQ(told, std::vector<uint64_t>{uint64_t{1} << 28});
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
    Loader loader(Tokens::map(folder / "a.bin"), {}, seed, 60000);
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
