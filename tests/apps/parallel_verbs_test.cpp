// What is done with runs by two ranks together.

#include <fstream>

#include "tests/apps/ranks.h"

namespace lighthouse::app {
namespace {

using Json = nlohmann::json;

class ParallelVerbsTest : public TwoRanksTest {
 protected:
  ParallelVerbsTest() {
    std::ofstream(folder / "recipe.toml") << recipe_head(folder / "text") << kLighthouseStage;
  }

  /// What the first of two ranks says; the other says nothing.
  std::string said_by_two(const std::vector<std::string>& words) {
    const auto ranks = start(words);
    for (const size_t rank : {0, 1}) EXPECT_EQ(ranks[rank]->wait(), 0) << said(rank);
    EXPECT_EQ(said(1), "");
    return said(0);
  }
  std::string said(size_t rank) const { return io::read_file(output(rank)); }

  /// Figures that one process writes, or two ranks.
  Json figures(std::vector<std::string> words, bool of_two) {
    words.insert(words.end(), {"--json", folder / "figures.json"});
    if (of_two) {
      said_by_two(words);
    } else {
      EXPECT_EQ(Program(words, folder / "output").wait(), 0) << io::read_file(folder / "output");
    }
    return Json::parse(io::read_file(folder / "figures.json"));
  }
};

void expect_near(const Json& found, const Json& expected) {
  ASSERT_EQ(found.type(), expected.type());
  ASSERT_EQ(found.size(), expected.size());
  const Json flat = found.flatten(), flat_expected = expected.flatten();
  for (const auto& [key, value] : flat_expected.items()) {
    const Json& other = flat.at(key);
    if (value.is_null()) {
      EXPECT_TRUE(other.is_null()) << key;  // a standard error of one sequence
    } else {
      EXPECT_NEAR(other.get<double>(), value.get<double>(), 1e-5) << key;
    }
  }
}

TEST_F(ParallelVerbsTest, FiguresAreThoseOfOneProcess) {
  finish("run", false);
  const std::string run = folder / "run";
  const std::vector<std::string> eval{"eval", run, "--sequences", "3", "--cuts", "1"};
  const Json of_eval = figures(eval, false);
  EXPECT_EQ(figures(eval, true), of_eval);
  const std::vector<std::string> passkey{"passkey",  run,        "--contexts", "128",
                                         "--depths", "0,50,100", "--trials",   "5"};
  const Json of_passkey = figures(passkey, false);
  EXPECT_EQ(figures(passkey, true), of_passkey);

  const auto shared = [](std::vector<std::string> words) {
    words.insert(words.end(), {"--parallel-context", "2"});
    return words;
  };
  expect_near(figures(shared(eval), true), of_eval);
  EXPECT_EQ(figures(shared(passkey), true), of_passkey);

  // What ranks cannot share is refused before any of it is measured.
  for (const auto& ranks = start(shared({"passkey", run, "--contexts", "128,130"}));
       const auto& rank : ranks) {
    EXPECT_EQ(rank->wait(), 2);
  }
  EXPECT_NE(said(0).find("--contexts has 130; 2 ranks share each prompt"), std::string::npos);
  EXPECT_EQ(said(0).find("trials a cell"), std::string::npos) << said(0);
}

TEST_F(ParallelVerbsTest, StepsAreTimedAndPlanned) {
  const std::string recipe = folder / "recipe.toml";
  const std::vector<std::string> bench{"bench", "train", recipe, "--threads", "1", "--steps", "1"};
  const Json data = figures(bench, true);
  EXPECT_EQ(data.at("ranks"), 2);
  EXPECT_EQ(data.at("context_ranks"), 1);
  for (const Json& row : data.at("rows")) {
    EXPECT_GT(row.at("waiting_ms"), 0);
    EXPECT_LT(row.at("waiting_ms"), row.at("step").at("max_ms"));
    EXPECT_FALSE(row.contains("exchange"));
  }
  const auto shared = [](std::vector<std::string> words) {
    words.insert(words.end(), {"--set", "parallel.context=2"});
    return words;
  };
  const Json context = figures(shared(bench), true);
  EXPECT_EQ(context.at("context_ranks"), 2);
  EXPECT_EQ(context.at("rows")[0].at("exchange"), "heads");
  EXPECT_LT(context.at("rows")[0].at("peak_bytes"), data.at("rows")[0].at("peak_bytes"));

  const std::vector<std::string> plan{"plan", recipe, "--threads", "1"};
  const std::string of_data = said_by_two(plan);
  EXPECT_NE(of_data.find(" for all 2 ranks\n"), std::string::npos) << of_data;
  EXPECT_NE(of_data.find("GiB a rank: "), std::string::npos) << of_data;
  EXPECT_EQ(of_data.find("exchange "), std::string::npos) << of_data;
  const std::string exchange = "stage lighthouse: exchange heads, because 2 ranks divide the 2";
  const std::string of_context = said_by_two(shared(plan));
  EXPECT_NE(of_context.find(exchange), std::string::npos) << of_context;
  EXPECT_NE(of_context.find("2, 1/2 of each"), std::string::npos) << of_context;
}

/// Of ranks that are not there memory is planned, and time where each has whole sequences.
TEST_F(ParallelVerbsTest, RanksAreNotNeededForAPlan) {
  const auto said_by = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"plan", folder / "recipe.toml", "--threads", "2"};
    words.insert(words.end(), more.begin(), more.end());
    Program(words, folder / "output").wait();
    return io::read_file(folder / "output");
  };
  const auto expect = [](const std::string& said, const std::vector<std::string>& words) {
    for (const auto& word : words) EXPECT_NE(said.find(word), std::string::npos) << word << said;
  };
  expect(said_by({"--ranks", "2"}), {"GiB a rank", "All stages: ", "times are without exchanges"});
  expect(said_by({"--set", "parallel.context=2"}),
         {"for all 2 ranks, of which 2 share each sequence", "2, 1/2 of each",
          "stage lighthouse: exchange heads, because", "times are not estimated"});
  expect(said_by({"--ranks", "3"}), {"stage.0.batch is 2; it must be a multiple of the 3 ranks"});
}

}  // namespace
}  // namespace lighthouse::app
