#include "lighthouse/data/corpus.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace lighthouse::data {
namespace {

namespace fs = std::filesystem;

std::string text_of(const Tokens& tokens) {
  const auto ids = tokens.first(tokens.size());
  return {ids.begin(), ids.end()};
}

std::set<std::string> documents_of(const Tokens& tokens) {
  const std::string bytes = text_of(tokens);
  std::set<std::string> documents;
  for (auto begin = bytes.begin(); begin != bytes.end();) {
    const auto end = std::find(begin, bytes.end(), 0);
    EXPECT_NE(end, bytes.end()) << "a document without an end";
    documents.emplace(begin, end);
    begin = end + 1;
  }
  return documents;
}

class CorpusTest : public testing::Test {
 protected:
  CorpusTest() {
    std::string pattern = (fs::temp_directory_path() / "corpus-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~CorpusTest() override { fs::remove_all(root_); }

  fs::path write(const std::string& name, const std::string& text) {
    fs::path path = root_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  /// What reading `path` throws.
  template <class Error>
  static std::string error_of(const fs::path& path, double share = 0.05) {
    try {
      Corpus::read(path, share);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  fs::path root_;
};

TEST_F(CorpusTest, SplitsAFileByPosition) {
  const std::string text = "0123456789abcdefghi";  // 20 bytes with the end
  const Corpus corpus = Corpus::read(write("one.txt", text), 0.25);
  EXPECT_EQ(text_of(corpus.train()), text.substr(0, 15) + '\0');
  EXPECT_EQ(text_of(corpus.held_out()), text.substr(15) + '\0');
  EXPECT_EQ(corpus.documents(), 1);
}

TEST_F(CorpusTest, KeepsBothPartsOfTheSmallestFile) {
  const Corpus corpus = Corpus::read(write("one.txt", "x"), 0.05);
  EXPECT_EQ(text_of(corpus.train()), std::string("x\0", 2));
  EXPECT_EQ(text_of(corpus.held_out()), std::string("\0", 1));
}

TEST_F(CorpusTest, ReadsAFieldOfJsonLines) {
  std::string lines, all;
  for (int i = 0; i < 200; ++i) {
    lines += R"({"id": )" + std::to_string(i) + R"(, "body": "number )" + std::to_string(i) +
             "\\n\\u00e9\"}\n";
    all += "number " + std::to_string(i) + "\n\u00e9" + '\0';
  }
  write("a.jsonl", lines + "\n" + R"({"body": ""})" + "\n" + R"({"body": "\u0000"})");
  const Corpus corpus = Corpus::read(root_, 0.2, "body");
  EXPECT_EQ(corpus.documents(), 200);
  EXPECT_EQ(corpus.skipped_empty(), 1);
  EXPECT_EQ(corpus.skipped_binary(), 1);
  const auto train = documents_of(corpus.train()), held_out = documents_of(corpus.held_out());
  EXPECT_EQ(train.size() + held_out.size(), 200u);
  EXPECT_GT(held_out.size(), 20u);
  EXPECT_LT(held_out.size(), 60u);
  EXPECT_TRUE(train.contains("number 7\n\u00e9") || held_out.contains("number 7\n\u00e9"));

  // Compressed they are the same, and so are lines longer than any buffer.
  lines.insert(0, R"({"body": ")" + std::string(3 << 20, 'x') + "\"}\n");
  write("plain/a.jsonl", lines);
  fs::create_directory(root_ / "packed");
  gzFile packed = gzopen((root_ / "packed/a.jsonl.gz").c_str(), "wb");
  ASSERT_EQ(gzwrite(packed, lines.data(), static_cast<unsigned>(lines.size())),
            static_cast<int>(lines.size()));
  ASSERT_EQ(gzclose(packed), Z_OK);
  const Corpus plain = Corpus::read(root_ / "plain", 1e-9, "body");
  EXPECT_EQ(plain.train().size() + plain.held_out().size(), (3u << 20) + 1 + all.size() + 1);
  const Corpus unpacked = Corpus::read(root_ / "packed/a.jsonl.gz", 1e-9, "body");
  EXPECT_EQ(text_of(unpacked.train()), text_of(plain.train()));
}

TEST_F(CorpusTest, NamesTheLineThatIsNotJsonOfTheField) {
  const std::string good = R"({"text": "x"})";
  const std::map<const char*, const char*> whys{{R"({"body": "x"})", "key 'text' not found"},
                                                {R"({"text": 1})", "must be string, but is number"},
                                                {"[]", "cannot use at() with array"},
                                                {R"({"text": "x")", "unexpected end of input"},
                                                {"x", "invalid literal"}};
  for (const auto& [bad, why] : whys) {
    const fs::path path = write("a.jsonl", good + "\n" + bad + "\n");
    const std::string error = error_of<std::runtime_error>(path);
    EXPECT_NE(error.find("a.jsonl', line 2, is not a JSON object with a string 'text'"),
              std::string::npos)
        << bad << ": " << error;
    EXPECT_NE(error.find(why), std::string::npos) << bad << ": " << error;
  }
  const fs::path endless = write("a.jsonl", "{\"text\": \"" + std::string(100000, 'x'));
  EXPECT_LT(error_of<std::runtime_error>(endless).size(), 500u + endless.string().size());
  gzFile packed = gzopen((root_ / "cut.jsonl.gz").c_str(), "wb");
  for (int i = 0; i < 5000; ++i) gzprintf(packed, "{\"text\": \"%d\"}\n", i * i);
  gzclose(packed);
  const fs::path cut = root_ / "cut.jsonl.gz";
  fs::resize_file(cut, fs::file_size(cut) / 2);
  const std::string error = error_of<std::runtime_error>(cut);
  EXPECT_NE(error.find("cannot read '" + cut.string() + "': unexpected end of file"),
            std::string::npos)
      << error;
}

TEST_F(CorpusTest, HoldsDocumentsOutByTheirPathsAlone) {
  std::set<std::string> all;
  for (int i = 0; i < 400; ++i) {
    const std::string name = (i % 2 ? "sub/" : "") + std::to_string(i) + ".txt";
    write(name, name);
    all.insert(name);
  }
  const Corpus before = Corpus::read(root_, 0.2);
  const auto train = documents_of(before.train()), held_out = documents_of(before.held_out());
  std::set<std::string> both = train;
  both.insert(held_out.begin(), held_out.end());
  EXPECT_EQ(both, all);
  EXPECT_EQ(train.size() + held_out.size(), all.size());
  // 400 draws at 0.2: 80, within five standard deviations of 8.
  EXPECT_GT(held_out.size(), 40u);
  EXPECT_LT(held_out.size(), 120u);

  // Others coming and going, and the folder being called something else, move none.
  write("another.txt", "another");
  fs::remove(root_ / "0.txt");
  const fs::path moved = root_.string() + "-moved";
  fs::rename(root_, moved);
  root_ = moved;
  const Corpus after = Corpus::read(root_.string() + "/", 0.2);
  std::set<std::string> expected = held_out, found = documents_of(after.held_out());
  for (auto* documents : {&expected, &found}) {
    documents->erase("0.txt");
    documents->erase("another");
  }
  EXPECT_EQ(found, expected);
}

TEST_F(CorpusTest, StandsInTheOrderOfPaths) {
  for (const char* name : {"c", "a/z", "b", "a/y"}) write(name, name);
  const Corpus corpus = Corpus::read(root_, 1e-9);  // too small a share for any of them
  EXPECT_EQ(text_of(corpus.train()).substr(0, 8), std::string("a/y\0a/z\0", 8));
}

TEST_F(CorpusTest, SplitsAFolderByPositionWhereAPartWouldBeEmpty) {
  write("a", "aaaaaaaaa");
  write("b", "bbbbbbbbb");
  const Corpus corpus = Corpus::read(root_, 1e-9);
  EXPECT_EQ(corpus.documents(), 2);
  EXPECT_EQ(text_of(corpus.train()), std::string("aaaaaaaaa\0bbbbbbbbb\0", 20));
  EXPECT_EQ(text_of(corpus.held_out()), std::string("\0", 1));
}

TEST_F(CorpusTest, SkipsAndCountsEmptyAndBinaryFiles) {
  write("text", "plain");
  write("empty", "");
  write("nul", std::string("a\0b", 3));
  write("latin", "caf\xe9");
  const Corpus corpus = Corpus::read(root_);
  EXPECT_EQ(corpus.documents(), 1);
  EXPECT_EQ(corpus.skipped_empty(), 1);
  EXPECT_EQ(corpus.skipped_binary(), 2);
}

TEST_F(CorpusTest, KnowsUtf8) {
  const std::vector<std::string> text{
      "\x7f",         "\xc2\x80",     "\xdf\xbf",         "\xe0\xa0\x80",     "\xed\x9f\xbf",
      "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xc3\xa9z"};
  const std::vector<std::string> binary{"\x80",
                                        "\xc1\xbf",
                                        "\xc2",
                                        "\xc2\x7f",
                                        "\xc2\xc0",
                                        "\xe0\x9f\xbf",
                                        "\xed\xa0\x80",
                                        "\xe1\x80",
                                        "\xe1\x80\x41",
                                        "\xf0\x8f\xbf\xbf",
                                        "\xf4\x90\x80\x80",
                                        "\xf5\x80\x80\x80",
                                        "\xff",
                                        "\xf1\x80\x80",
                                        "\xf1\x80\x80\xc0"};
  for (size_t i = 0; i < text.size(); ++i) write("text" + std::to_string(i), text[i]);
  EXPECT_EQ(Corpus::read(root_).documents(), static_cast<int64_t>(text.size()));
  for (size_t i = 0; i < binary.size(); ++i) write("binary" + std::to_string(i), binary[i]);
  EXPECT_EQ(Corpus::read(root_).skipped_binary(), static_cast<int64_t>(binary.size()));
}

TEST_F(CorpusTest, FollowsLinksToFilesButNotToFolders) {
  const fs::path file = write("elsewhere/file", "linked text");
  write("text/a", "text");
  fs::create_symlink(file, root_ / "text/link");
  fs::create_directory_symlink(root_ / "text", root_ / "text/loop");
  fs::create_directory_symlink(root_ / "elsewhere", root_ / "text/folder");
  EXPECT_EQ(Corpus::read(root_ / "text").documents(), 2);
  EXPECT_EQ(Corpus::read(root_ / "text/loop").documents(), 2);
}

TEST_F(CorpusTest, NamesWhatCannotBeRead) {
  const fs::path folder = root_ / "text";
  write("text/a", "text");
  const fs::path dangling = folder / "dangling";
  fs::create_symlink("nowhere", dangling);
  EXPECT_EQ(error_of<std::runtime_error>(folder),
            "cannot read '" + dangling.string() + "': the symbolic link leads nowhere");
  fs::remove(dangling);
  const fs::path itself = folder / "itself";
  fs::create_symlink("itself", itself);
  EXPECT_EQ(error_of<std::runtime_error>(folder),
            "cannot read '" + itself.string() + "': Too many levels of symbolic links");
}

TEST_F(CorpusTest, NamesWhatIsNoText) {
  const auto error = error_of<std::invalid_argument>;
  const std::string folder = root_.string();
  EXPECT_EQ(error(root_ / "nothing", 0.05), "the text '" + folder + "/nothing' does not exist");
  EXPECT_EQ(error("/dev/null", 0.05), "the text '/dev/null' is neither a file nor a folder");
  write("empty", "");
  write("nul", std::string(1, '\0'));
  EXPECT_EQ(error(root_, 0.05),
            "the text '" + folder + "' holds no text: 1 empty and 1 binary files");
  EXPECT_EQ(error(root_, 0), "the share of held-out text is 0; it must be between 0 and 1");
  EXPECT_EQ(error(root_, 1), "the share of held-out text is 1; it must be between 0 and 1");
}

TEST_F(CorpusTest, FingerprintsBothParts) {
  const fs::path path = write("text", "0123456789abcdefghi");
  const uint64_t print = Corpus::read(path, 0.25).fingerprint();
  EXPECT_EQ(Corpus::read(path, 0.25).fingerprint(), print);
  EXPECT_NE(Corpus::read(path, 0.5).fingerprint(), print);
  write("text", "0123456789abcdefghI");
  EXPECT_NE(Corpus::read(path, 0.25).fingerprint(), print);
  write("text", "O123456789abcdefghi");
  EXPECT_NE(Corpus::read(path, 0.25).fingerprint(), print);
}

TEST_F(CorpusTest, TakesTokenFilesInTheOrderOfTheirNames) {
  const std::vector<int64_t> first{1, 2, 3, 4, 5}, second{6, 7, 8, 9, 10};
  write_tokens(root_ / "b.bin", second, 1000);
  write_tokens(root_ / "a.bin", first, 100000);
  write("notes.txt", "left out");
  const Corpus corpus = Corpus::read(root_, 0.2);
  EXPECT_EQ(corpus.train().first(99), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(corpus.held_out().first(99), (std::vector<int64_t>{9, 10}));
  EXPECT_EQ(corpus.describe(), "tokens: 2 files, 8 tokens to train on, 2 held out");
  const Corpus one = Corpus::read(root_ / "a.bin", 0.2);
  EXPECT_EQ(one.held_out().first(99), std::vector<int64_t>{5});
  EXPECT_NE(one.fingerprint(), corpus.fingerprint());
  EXPECT_EQ(Corpus::read(root_, 0.2).fingerprint(), corpus.fingerprint());
}

TEST_F(CorpusTest, HoldsOutTheTokenFilesThatSaySo) {
  write_tokens(root_ / "train.bin", std::vector<int64_t>{1, 2, 3}, 1000);
  write_tokens(root_ / "val.bin", std::vector<int64_t>{4, 5}, 1000);
  const Corpus corpus = Corpus::read(root_, 0.5);
  EXPECT_EQ(corpus.train().first(99), (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(corpus.held_out().first(99), (std::vector<int64_t>{4, 5}));
}

}  // namespace
}  // namespace lighthouse::data
