#include "lighthouse/data/corpus.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lighthouse/core/check.h"
#include "lighthouse/data/loader.h"
#include "tests/support/throws.h"

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

class CorpusTest : public ::testing::Test {
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

  static Corpus read(const fs::path& path, double share = 0.05, const std::string& field = "text") {
    return Corpus::read({{path.string()}, field, share});
  }

  /// What reading `path` throws.
  template <class Error>
  static std::string error_of(const fs::path& path, double share = 0.05) {
    try {
      read(path, share);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  fs::path root_;
};

TEST_F(CorpusTest, SplitsAFileByPosition) {
  const std::string text = "0123456789abcdefghi";  // 20 bytes with the end
  const Corpus corpus = read(write("one.txt", text), 0.25);
  EXPECT_EQ(text_of(corpus.train()), text.substr(0, 15) + '\0');
  EXPECT_EQ(text_of(corpus.held_out()), text.substr(15) + '\0');
  EXPECT_EQ(corpus.documents(), 1);
  EXPECT_EQ(corpus.train_ends().places, (std::vector<uint64_t>{16}));
  EXPECT_EQ(corpus.held_out_ends().places, (std::vector<uint64_t>{5}));
}

TEST_F(CorpusTest, KeepsBothPartsOfTheSmallestFile) {
  const Corpus corpus = read(write("one.txt", "x"), 0.05);
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
  const Corpus corpus = read(root_, 0.2, "body");
  EXPECT_EQ(corpus.documents(), 200);
  EXPECT_EQ(corpus.inventory().left_out(Corpus::kEmpty), 1);
  EXPECT_EQ(corpus.inventory().left_out(Corpus::kHasZero), 1);
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
  const Corpus plain = read(root_ / "plain", 1e-9, "body");
  EXPECT_EQ(plain.train().size() + plain.held_out().size(), (3u << 20) + 1 + all.size() + 1);
  const Corpus unpacked = read(root_ / "packed/a.jsonl.gz", 1e-9, "body");
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
}

TEST_F(CorpusTest, HoldsDocumentsOutByTheirPathsAlone) {
  std::set<std::string> all;
  for (int i = 0; i < 400; ++i) {
    const std::string name = (i % 2 ? "sub/" : "") + std::to_string(i) + ".txt";
    write(name, name);
    all.insert(name);
  }
  const Corpus before = read(root_, 0.2);
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
  const Corpus after = read(root_.string() + "/", 0.2);
  std::set<std::string> expected = held_out, found = documents_of(after.held_out());
  for (auto* documents : {&expected, &found}) {
    documents->erase("0.txt");
    documents->erase("another");
  }
  EXPECT_EQ(found, expected);
}

TEST_F(CorpusTest, StandsInTheOrderOfPaths) {
  for (const char* name : {"c", "a/z", "b", "a/y"}) write(name, name);
  const Corpus corpus = read(root_, 1e-9);  // too small a share for any of them
  EXPECT_EQ(text_of(corpus.train()).substr(0, 8), std::string("a/y\0a/z\0", 8));
}

TEST_F(CorpusTest, SplitsAFolderByPositionWhereAPartWouldBeEmpty) {
  write("a", "aaaaaaaaa");
  write("b", "bbbbbbbbb");
  const Corpus corpus = read(root_, 1e-9);
  EXPECT_EQ(corpus.documents(), 2);
  EXPECT_EQ(text_of(corpus.train()), std::string("aaaaaaaaa\0bbbbbbbbb\0", 20));
  EXPECT_EQ(text_of(corpus.held_out()), std::string("\0", 1));
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
  EXPECT_EQ(read(root_).documents(), static_cast<int64_t>(text.size()));
  for (size_t i = 0; i < binary.size(); ++i) write("binary" + std::to_string(i), binary[i]);
  EXPECT_EQ(read(root_).inventory().left_out(Corpus::kNotUtf8),
            static_cast<int64_t>(binary.size()));
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
  EXPECT_EQ(error("/dev/null", 0.05),
            "the data '/dev/null' (data.path) is neither a file nor a folder");
  write("a", "a");
  EXPECT_EQ(error(root_, 0), "the share of held-out text is 0; it must be between 0 and 1");
  EXPECT_EQ(error(root_, 1), "the share of held-out text is 1; it must be between 0 and 1");
  write("a.parquet", "PAR1");
  const std::string parquet = error_of<std::runtime_error>(root_);
  EXPECT_NE(parquet.find("a.parquet' is Parquet"), std::string::npos) << parquet;
  EXPECT_NE(parquet.find("lighthouse_attention.tokens"), std::string::npos) << parquet;
}

TEST_F(CorpusTest, FingerprintsBothParts) {
  const fs::path path = write("text", "0123456789abcdefghi");
  const uint64_t print = read(path, 0.25).fingerprint();
  EXPECT_EQ(read(path, 0.25).fingerprint(), print);
  EXPECT_NE(read(path, 0.5).fingerprint(), print);
  write("text", "0123456789abcdefghI");
  EXPECT_NE(read(path, 0.25).fingerprint(), print);
  write("text", "O123456789abcdefghi");
  EXPECT_NE(read(path, 0.25).fingerprint(), print);
}

TEST_F(CorpusTest, FingerprintsAreThoseOfEarlierVersions) {
  write("a", "0123456789");
  write("b/c", "abc");
  EXPECT_EQ(read(root_, 0.5).fingerprint(), 10289048780376099542u);
  EXPECT_EQ(read(root_ / "a", 0.25).fingerprint(), 15589174592642527880u);
}

TEST_F(CorpusTest, ReadsALargeFileWhereItLies) {
  std::string text("\xef\xbb\xbf");
  while (text.size() < (17u << 20)) text += "0123456789 \xc3\xa9\n";
  write("b.txt", text);
  write("a.txt", "first");
  write("c.txt", "last");
  const Corpus corpus = read(root_, 1e-9);
  EXPECT_EQ(corpus.documents(), 3);
  const std::string all = "first" + std::string(1, '\0') + text.substr(3) + '\0' + "last";
  EXPECT_TRUE(text_of(corpus.train()) == all + '\0');
  EXPECT_EQ(corpus.train_ends().places,
            (std::vector<uint64_t>{6, text.size() + 4, text.size() + 9}));
  write("b.txt", text + "\xff");
  const Corpus without = read(root_, 1e-9);
  EXPECT_EQ(without.documents(), 2);
  EXPECT_NE(without.describe().find(message("b.txt: byte ", text.size(), " is not UTF-8")),
            std::string::npos)
      << without.describe();
}

/// What a process comes to need more of memory, in bytes, while it reads the data and draws from
/// it all there is.
int64_t memory_to_read(const Source& source) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto peak = [] {
      rusage usage{};
      ::getrusage(RUSAGE_SELF, &usage);
      return int64_t{usage.ru_maxrss} << 10;
    };
    const int64_t before = peak();
    const Corpus corpus = Corpus::read(source);
    const Loader loader(corpus.train(), corpus.train_ends(), 1);
    const int64_t more = loader.epoch() == 0 ? peak() - before : -1;
    const bool told = ::write(ends[1], &more, sizeof(more)) == sizeof(more);
    ::_exit(told ? 0 : 1);
  }
  ::close(ends[1]);
  int64_t more = -1;
  EXPECT_EQ(::read(ends[0], &more, sizeof(more)), static_cast<ssize_t>(sizeof(more)));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  return more;
}

TEST_F(CorpusTest, TextTakesNoMemoryOfItsSize) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "what is given back stays with the sanitizer";
#endif
  constexpr int64_t kSize = 40 << 20, kEnough = 24 << 20;
  std::string paragraph = "So much text, and so little memory. ";
  while (paragraph.size() < (1 << 20)) paragraph += paragraph;
  paragraph.resize(1 << 20);
  {
    std::ofstream large(root_ / "large.txt");
    gzFile packed = gzopen((root_ / "packed.txt.gz").c_str(), "wb1");
    gzFile lines = gzopen((root_ / "lines.jsonl.gz").c_str(), "wb1");
    fs::create_directory(root_ / "small");
    for (int64_t i = 0; i < kSize >> 20; ++i) {
      large << paragraph;
      gzwrite(packed, paragraph.data(), static_cast<unsigned>(paragraph.size()));
      gzprintf(lines, "{\"text\": \"");
      gzwrite(lines, paragraph.data(), static_cast<unsigned>(paragraph.size()));
      gzprintf(lines, "\"}\n");
      write(message("small/", i), paragraph);
    }
    ASSERT_EQ(gzclose(packed), Z_OK);
    ASSERT_EQ(gzclose(lines), Z_OK);
  }
  for (const char* name : {"large.txt", "packed.txt.gz", "lines.jsonl.gz", "small"}) {
    const int64_t needed = memory_to_read({{(root_ / name).string()}});
    EXPECT_GT(needed, 0) << name;
    EXPECT_LT(needed, kEnough) << name;
  }
}

/// What text is, for the trainer and for python -m lighthouse_attention.tokens alike.
TEST_F(CorpusTest, KnowsTextAsTheConverterDoes) {
  const auto cases = nlohmann::json::parse(std::ifstream(LIGHTHOUSE_TEXT_CASES));
  ASSERT_GT(cases.size(), 30u);
  int64_t number = 0;
  for (const auto& given : cases) {
    SCOPED_TRACE(given.at("what").get<std::string>());
    const std::string folder = message("case", ++number, '/');
    fs::create_directory(root_ / folder);
    for (const auto& [name, content] : given.at("files").items()) {
      std::string bytes;
      if (content.is_string()) {
        bytes = content;
      } else {
        const std::string hex = content.at("hex");
        for (size_t i = 0; i < hex.size(); i += 2) {
          bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
        }
      }
      write(folder + name, bytes);
    }
    const auto links = given.value("links", nlohmann::json::object());
    for (const auto& [name, target] : links.items()) {
      fs::create_symlink(target.get<std::string>(), root_ / folder / name);
    }
    Source source{{}, given.value("field", "text"), 1e-9};
    for (const std::string& path : given.value("paths", std::vector<std::string>{""})) {
      source.path.push_back((root_ / folder / path).string());
    }
    if (given.contains("error")) {
      try {
        Corpus::read(source);
        ADD_FAILURE() << "no error";
      } catch (const std::exception& error) {
        for (const std::string part : given.at("error")) {
          EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        }
      }
      continue;
    }
    const Corpus corpus = Corpus::read(source);
    std::string expected;
    for (const std::string document : given.at("documents")) expected += document + '\0';
    const std::string train = text_of(corpus.train());
    EXPECT_EQ(train.substr(0, train.size() - 1) + text_of(corpus.held_out()), expected);
    int64_t left_out = 0;
    const auto reasons = given.value("left_out", nlohmann::json::object());
    for (const auto& [why, count] : reasons.items()) {
      EXPECT_EQ(corpus.inventory().left_out(why), count) << why;
      left_out += count.get<int64_t>();
    }
    EXPECT_EQ(corpus.inventory().left_out(), left_out) << corpus.describe();
  }
}

TEST_F(CorpusTest, SaysWhatIsTakenAsWhat) {
  write("a.txt", "12345");
  write("b.txt", "1234567");
  write("c.md", "1");
  write("d.JSONL", "{\"text\": \"1\"}\n{\"text\": \"2\"}\n");
  for (int i = 0; i < 7; ++i) write(message("empty", i), "");
  write("latin", "caf\xe9");
  EXPECT_EQ(read(root_, 1e-9).describe(),
            "the data is taken as\n"
            "                files   documents           bytes\n"
            "  text              3           3              16  .txt 2, .md 1\n"
            "  JSON lines        1           2               4  .JSONL 1\n"
            "left out\n"
            "  empty             7                              empty0, empty1, empty2, empty3, "
            "empty4, ...\n"
            "  not UTF-8         1                              latin: byte 3 is not UTF-8\n"
            "text: 5 documents, 20 bytes to train on, 1 held out");
}

TEST_F(CorpusTest, MakesADocumentOfAFolder) {
  const std::vector<std::string> names{"top",     "a/b.txt",   "a/c/d", "a/c/e/f",
                                       "a/d.txt", "g/h.jsonl", "g/i",   "latin/bad"};
  for (const std::string& name : names) write(name, name);
  write("g/h.jsonl", "{\"text\": \"1\"}\n{\"text\": \"2\"}\n");
  write("latin/bad", "\xff");
  const auto documents = [&](int64_t depth, double share = 1e-9) {
    const Corpus corpus =
        Corpus::read({{root_.string()}, "text", share, Documents::kFolders, depth});
    const std::string text = text_of(corpus.train());
    std::vector<std::string> all;
    uint64_t begin = 0;
    for (const uint64_t end : corpus.train_ends().places) {
      all.push_back(text.substr(begin, end - begin));
      std::ranges::replace(all.back(), '\0', ';');
      begin = end;
    }
    EXPECT_EQ(begin, text.size());
    return all;
  };
  // Nothing is held out by name: the last byte of all is, and its place is taken by an end.
  EXPECT_EQ(documents(1),
            (std::vector<std::string>{"top;", "a/b.txt;a/c/d;a/c/e/f;a/d.txt;", "1;2;g/i;"}));
  EXPECT_EQ(documents(2),
            (std::vector<std::string>{"top;", "a/b.txt;a/d.txt;", "a/c/d;a/c/e/f;", "1;2;g/i;"}));
  EXPECT_EQ(documents(9).size(), 5u);
  // Folders are held out whole, by a hash of their names.
  const std::vector<std::string> all = documents(1);
  const std::vector<std::string> some = documents(1, 0.5);
  EXPECT_LT(some.size(), all.size());
  for (const std::string& document : some) EXPECT_EQ(std::ranges::count(all, document), 1);

  const Source source{{root_.string()}, "text", 0.5, Documents::kFolders, 1};
  const Corpus corpus = Corpus::read(source);
  EXPECT_EQ(corpus.documents(), 3);
  EXPECT_EQ(Corpus::read(source, corpus.files()).fingerprint(), corpus.fingerprint());
  write_tokens(root_ / "a.bin", std::vector<int64_t>{1, 2}, 10);
  EXPECT_TRUE(testing::throws<std::invalid_argument>([&] { Corpus::read(source); },
                                                     {"data.documents is 'folders'"}));
}

TEST_F(CorpusTest, ReadsWhatItReadBefore) {
  write("a.txt", "a");
  write("b.json", "{\"text\": \"1\"}");
  write("latin", "caf\xe9");
  write("odd \\ na\nme", "odd");
  const Corpus before = read(root_, 0.4);
  write_file_list(root_ / "list", before.files());
  const FileList list = read_file_list(root_ / "list");
  EXPECT_EQ(list, before.files());
  fs::remove(root_ / "list");
  EXPECT_TRUE(read_file_list(root_ / "list").empty());

  write("new.txt", "new");
  write("tokens.bin", "new");
  write("latin", "cafe");
  const Source source{{root_.string()}, "text", 0.4};
  const auto again = [&] { return Corpus::read(source, list); };
  EXPECT_EQ(again().fingerprint(), before.fingerprint());
  const auto refuses = [&](const std::string& name, const std::string& why) {
    return testing::throws<std::invalid_argument>(again, {(root_ / name).string(), why});
  };
  write("a.txt", "b");
  EXPECT_TRUE(refuses("a.txt", "not what the run began with: it was changed"));
  write("a.txt", "aa");
  EXPECT_TRUE(refuses("a.txt", "it has 3 tokens, it had 2"));
  write("a.txt", std::string(1, '\0'));
  EXPECT_TRUE(refuses("a.txt", "it is not text any more"));
  fs::remove(root_ / "a.txt");
  EXPECT_TRUE(refuses("a.txt", "which is gone"));
  write("a.txt", "a");
  EXPECT_EQ(again().fingerprint(), before.fingerprint());

  write("list", "0 text 1\n");
  EXPECT_TRUE(testing::throws<std::runtime_error>([&] { read_file_list(root_ / "list"); },
                                                  {"list', line 1, is '0 text 1'"}));
}

TEST_F(CorpusTest, TakesTokenFilesInTheOrderOfTheirNames) {
  const std::vector<int64_t> first{1, 2, 3, 4, 5}, second{6, 7, 8, 9, 10};
  write_tokens(root_ / "b.bin", second, 1000);
  write_tokens(root_ / "a.bin", first, 100000);
  write("notes.txt", "left out");
  const Corpus corpus = read(root_, 0.2);
  EXPECT_EQ(corpus.train().first(99), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(corpus.held_out().first(99), (std::vector<int64_t>{9, 10}));
  EXPECT_EQ(corpus.describe(),
            "the data is taken as\n"
            "                               files          tokens\n"
            "  token files                      2              10  .bin 2\n"
            "left out\n"
            "  beside token files (.bin)        1                  notes.txt\n"
            "tokens: 2 files, 8 tokens to train on, 2 held out");
  const Corpus one = read(root_ / "a.bin", 0.2);
  EXPECT_EQ(one.held_out().first(99), std::vector<int64_t>{5});
  EXPECT_NE(one.fingerprint(), corpus.fingerprint());
  EXPECT_EQ(read(root_, 0.2).fingerprint(), corpus.fingerprint());
}

TEST_F(CorpusTest, HoldsOutTheTokenFilesThatSaySo) {
  fs::create_directories(root_ / "val");
  const std::vector<std::pair<std::string, int64_t>> files{
      {"train.bin", 1}, {"val/a.bin", 2}, {"TEST.BIN", 3}, {"valuable_books.bin", 4}};
  for (const auto& [name, id] : files) {
    write_tokens(root_ / name, std::vector<int64_t>{id, id}, 1000);
  }
  const Corpus corpus = read(root_, 0.5);
  EXPECT_EQ(corpus.train().first(99), (std::vector<int64_t>{1, 1, 4, 4}));
  EXPECT_EQ(corpus.held_out().first(99), (std::vector<int64_t>{3, 3, 2, 2}));
  EXPECT_EQ(corpus.describe(),
            "the data is taken as\n"
            "                                          files          tokens\n"
            "  token files, held out by their names        2               4  .BIN 1, .bin 1\n"
            "  token files                                 2               4  .bin 2\n"
            "tokens: 4 files, 4 tokens to train on, 4 held out");
  const auto list = corpus.files();
  EXPECT_EQ(Corpus::read({{root_.string()}, "text", 0.5}, list).fingerprint(),
            corpus.fingerprint());
}

TEST_F(CorpusTest, KnowsHeldOutNamesByTheirWords) {
  for (const char* name : {"val.bin", "fineweb_val_000000.bin", "Validation-3.bin", "test.bin",
                           "shard.dev.bin", "held_out.bin", "heldout7.bin", "val/a.bin",
                           "test/part 1/a.bin", "train/val.bin", "eval/0.bin"}) {
    EXPECT_TRUE(is_held_out(name)) << name;
  }
  for (const char* name :
       {"valuable_books.bin", "a.bin", "train.bin", "interval.bin", "latest.bin", "contest.bin",
        "val/train_3.bin", "test/train/a.bin", "devices.bin", "held.bin", "out/held.bin"}) {
    EXPECT_FALSE(is_held_out(name)) << name;
  }
}

TEST_F(CorpusTest, NamesATokenFileAmongTextAsTheCause) {
  write("a.txt", "text");
  write("b.txt", "text");
  write("stray.bin", "odd");
  const auto error = error_of<std::runtime_error>(root_);
  EXPECT_NE(error.find("stray.bin' has 3 bytes"), std::string::npos) << error;
  EXPECT_NE(error.find("its name ends with .bin, and 2 other files are left out"),
            std::string::npos)
      << error;
  write("stray.bin", "even");
  const Corpus corpus = read(root_);
  EXPECT_EQ(corpus.inventory().left_out(Corpus::kBesideTokens), 2);
  EXPECT_TRUE(testing::throws<std::runtime_error>(
      [&] { corpus.check_vocabulary(256); },
      {"stray.bin' has the id 30309 at position 0", "2 other files are left out"}));
  // Alone it is as it was.
  fs::remove(root_ / "a.txt");
  fs::remove(root_ / "b.txt");
  write("stray.bin", "odd");
  EXPECT_EQ(error_of<std::runtime_error>(root_).find("left out"), std::string::npos);
  write("packed.bin.gz", "");
  EXPECT_NE(error_of<std::runtime_error>(root_ / "packed.bin.gz").find("must be decompressed"),
            std::string::npos);
}

TEST_F(CorpusTest, HoldsTheDataAgainstTheVocabulary) {
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [&] { read(write("a.txt", "text")).check_vocabulary(65); },
      {"model.vocab_size is 65; of text it must be 256 or more"}));
  read(root_ / "a.txt").check_vocabulary(256);
  write_tokens(root_ / "characters.bin", std::vector<int64_t>{0, 64, 1}, 65);
  read(root_ / "characters.bin").check_vocabulary(65);
}

/// Of both parts, whether they are chosen by name or cut off the end.
TEST_F(CorpusTest, KnowsWhereDocumentsOfTextEnd) {
  for (int i = 0; i < 40; ++i) write(message("d", i), std::string(1 + i % 7, 'x'));
  for (const double share : {0.3, 1e-9}) {
    const Corpus corpus = read(root_, share);
    for (const auto& [tokens, ends] : {std::pair(&corpus.train(), &corpus.train_ends()),
                                       std::pair(&corpus.held_out(), &corpus.held_out_ends())}) {
      const std::string text = text_of(*tokens);
      std::vector<uint64_t> expected;
      for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\0') expected.push_back(i + 1);
      }
      EXPECT_EQ(ends->places, expected);
      EXPECT_EQ(ends->token, -1);
    }
  }
}

TEST_F(CorpusTest, ByteZeroEndsNoDocumentInAFolderThatIsOne) {
  for (const char* name : {"a/1", "a/2", "b/1", "b/2"}) write(name, "xyz");
  Source source{{root_.string()}, "text", 1e-9, Documents::kFolders};
  source.attention = Attention::kWithin;
  const Corpus corpus = Corpus::read(source);
  Loader loader(corpus.train(), corpus.train_ends(), 1);
  const at::Tensor starts = loader.next(1, 16, {4, Positions::kRow}).document_starts[0];
  EXPECT_TRUE(starts.equal(at::tensor({0, 8, 16, 16}, at::kInt))) << starts;
}

TEST_F(CorpusTest, DocumentsOfTokenFilesEndWithTheEndToken) {
  const std::vector<int64_t> first{5, 6, 9, 7, 9, 8}, second{4, 3, 9, 2, 1, 2, 9, 3};
  write_tokens(root_ / "a.bin", first, 10);
  write_tokens(root_ / "b.bin", second, 10);
  write_tokens(root_ / "c_val.bin", second, 10);
  Source source{{root_.string()}};
  const auto refused = [&](std::initializer_list<std::string> parts) {
    return testing::throws<std::invalid_argument>([&] { Corpus::read(source); }, parts);
  };
  source.positions = Positions::kDocument;
  EXPECT_TRUE(refused({"data.positions is 'document'", "data.end_token must be the id"}));
  source.attention = Attention::kWithin;
  EXPECT_TRUE(refused({"data.attention is 'within'", root_.string(), "data.end_token must be"}));
  source.end_token = 9;
  const Corpus corpus = Corpus::read(source);
  EXPECT_NE(corpus.describe().find("of the first 14 tokens 4 end a document (data.end_token = 9)"),
            std::string::npos)
      << corpus.describe();
  // The first file ends without one.
  const auto starts = [](const Batch& batch) {
    const at::Tensor found = batch.document_starts[0];
    return std::vector<int64_t>(found.const_data_ptr<int>(),
                                found.const_data_ptr<int>() + found.numel());
  };
  Loader loader(corpus.train(), corpus.train_ends(), 1, 10);
  const Batch batch = loader.next(1, 14, {6, Positions::kRow});
  EXPECT_EQ(starts(batch), (std::vector<int64_t>{0, 3, 5, 6, 9, 13}));
  EXPECT_EQ(batch.count_targets(), 14 - 6);  // the epoch ends, too
  const auto held_out =
      held_out_batches(corpus.held_out(), 1, 7, 10, corpus.held_out_ends(), {3, Positions::kRow});
  EXPECT_EQ(starts(held_out.at(0)), (std::vector<int64_t>{0, 3, 7}));

  fs::remove(root_ / "c_val.bin");
  source.held_out_share = 0.5;
  const Corpus cut = Corpus::read(source);
  EXPECT_EQ(cut.train_ends().places, (std::vector<uint64_t>{6}));
  EXPECT_EQ(cut.held_out_ends().places, (std::vector<uint64_t>{7}));
  source.end_token = 0;
  EXPECT_NE(Corpus::read(source).describe().find("of the first 7 tokens none end a document"),
            std::string::npos);
  source.path = {write("text", "abc").string()};
  EXPECT_TRUE(refused({"data.end_token is 0", "documents end with byte 0", "left out"}));
}

}  // namespace
}  // namespace lighthouse::data
