// What is done with runs, by the program's verbs.

#include "tests/apps/process.h"

namespace lighthouse::app {
namespace {

class VerbsTest : public ProcessTest {
 protected:
  ~VerbsTest() override { ::unsetenv("LIGHTHOUSE_PYTHON"); }

  /// What draws pictures; unless it is said what to do, its arguments and its input are the
  /// picture.
  void stub_python(const std::string& script = "echo \"$@\"; cat") const {
    std::ofstream(folder / "python") << "#!/bin/sh\n" << script << '\n';
    fs::permissions(folder / "python", fs::perms::owner_all);
    ::setenv("LIGHTHOUSE_PYTHON", (folder / "python").c_str(), 1);
  }
};

TEST_F(VerbsTest, EvalMeasuresARun) {
  finish("run", false);
  const auto eval = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{"eval", folder / "run"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  const fs::path moved = folder / "moved";
  fs::rename(folder / "text", moved);
  ASSERT_EQ(eval({"--sequences", "1", "--json", folder / "eval.json", "--data", moved}), 0)
      << io::read_file(folder / "output");
  const auto json = nlohmann::json::parse(io::read_file(folder / "eval.json"));
  // The context of the Lighthouse stage: longer than that of the last stage.
  EXPECT_NE(json.at("held_out_dense"), json.at("held_out_as_trained"));
  EXPECT_LT(json.at("held_out_dense"), 5);
  EXPECT_GT(json.at("token_frequency"), 2);
  EXPECT_GE(json.at("by_position_dense").size(), 2u);
  EXPECT_EQ(json.at("by_position_as_trained").size(), json.at("by_position_dense").size());
  ASSERT_EQ(json.at("leak_dense").size(), 5u);
  ASSERT_EQ(json.at("leak_as_trained").size(), 5u);
  for (const auto& bin : json.at("leak_dense")) EXPECT_EQ(bin.at("mean"), 0);
  EXPECT_NE(json.at("leak_as_trained")[0].at("mean"), 0);
  EXPECT_EQ(json.at("leak_as_trained")[1].at("first"), 2);
  EXPECT_EQ(json.at("leak_as_trained")[1].at("last"), 4);
  EXPECT_EQ(json.at("of_sequences_dense"), nlohmann::json({json.at("held_out_dense")}));
  EXPECT_EQ(json.at("of_sequences_as_trained"), nlohmann::json({json.at("held_out_as_trained")}));

  ASSERT_EQ(eval({"--cuts", "0", "--json", folder / "eval.json", "--data", moved}), 0);
  EXPECT_EQ(io::read_file(folder / "output").find("leak"), std::string::npos);
  const auto without = nlohmann::json::parse(io::read_file(folder / "eval.json"));
  EXPECT_EQ(without.at("leak_as_trained"), nlohmann::json::array());
  EXPECT_EQ(eval({"--checkpoint", moved}), 2);
  EXPECT_EQ(eval({"--data", ""}), 2);  // as of a variable that is not set
  EXPECT_NE(io::read_file(folder / "output").find("--data: it is empty"), std::string::npos);
  EXPECT_EQ(eval({"--sequences", "0"}), 2);
  EXPECT_NE(
      io::read_file(folder / "output").find("--sequences: '0' is not an integer of at least 1\n"),
      std::string::npos)
      << io::read_file(folder / "output");
  write_text(folder / "text", 2);
  EXPECT_EQ(eval({}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("text' is not what the run began with"),
            std::string::npos);
}

/// After a run was forced to go on with another rotary embedding, what was made before has its own.
TEST_F(VerbsTest, ACheckpointHasItsOwnModelAndRun) {
  const auto run = [&](const std::vector<std::string>& all) {
    return Program(all, folder / "output").wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  const auto rope_of = [&](const char* model) {
    return nlohmann::json::parse(io::read_file(folder / model / "config.json")).at("rope_theta");
  };
  auto train = arguments("run", false);
  train.insert(train.end(), {"--set", "run.keep_checkpoints=100"});
  ASSERT_EQ(run(train), 0) << said();
  const fs::path checkpoints = RunFolder(folder / "run").checkpoints();
  train.insert(train.end(), {"--resume-from", checkpoints / "step-00000015", "--force", "--set",
                             "model.rope_theta=500"});
  ASSERT_EQ(run(train), 0) << said();
  ASSERT_EQ(run({"export", folder / "run", folder / "newest"}), 0) << said();
  EXPECT_EQ(rope_of("newest"), 500);
  EXPECT_EQ(said().find("note:"), std::string::npos) << said();
  const fs::path earlier = checkpoints / "step-00000012";
  ASSERT_EQ(run({"export", folder / "run", folder / "earlier", "--checkpoint", earlier}), 0);
  EXPECT_NE(said().find("model.rope_theta: 10000.0 -> 500.0"), std::string::npos) << said();
  EXPECT_EQ(rope_of("earlier"), 10000);
  EXPECT_NE(io::read_file(folder / "earlier/README.md").find("rope_theta = 10000.0"),
            std::string::npos);

  auto other = arguments("other", false);
  other.insert(other.end(), {"--set", "model.hidden_size=32"});
  ASSERT_EQ(run(other), 0) << said();
  const fs::path foreign = Checkpoints(RunFolder(folder / "other").checkpoints()).list().back();
  for (const char* verb : {"export", "eval", "passkey"}) {
    std::vector<std::string> all{verb, folder / "run"};
    if (all[0] == "export") all.push_back(folder / "foreign");
    all.insert(all.end(), {"--checkpoint", foreign});
    EXPECT_EQ(run(all), 2) << verb;
    EXPECT_NE(said().find("--checkpoint is '" + foreign.string() + "', which is of another run"),
              std::string::npos)
        << said();
    EXPECT_NE(said().find("model.hidden_size: 32 -> 16"), std::string::npos) << said();
  }
  EXPECT_FALSE(fs::exists(folder / "foreign"));
}

/// Tables do not mix with what is piped.
TEST_F(VerbsTest, FiguresArePipedAlone) {
  finish("run", false);
  const std::string run = folder / "run";
  const Said eval =
      shell("lighthouse eval " + run + " --sequences 1 --json - 2>" + (folder / "tables").string());
  EXPECT_EQ(eval.status, 0) << io::read_file(folder / "tables");
  EXPECT_TRUE(nlohmann::json::parse(eval.text).contains("held_out_dense"));
  EXPECT_NE(io::read_file(folder / "tables").find("loss on held-out text"), std::string::npos);
  // Where standard output is a file, that is not replaced.
  stub_python("echo drawn");
  const std::string file = folder / "file";
  const Said plot =
      shell("{ echo first; lighthouse plot " + run + " --out /dev/stdout; } >" + file);
  EXPECT_EQ(plot.status, 0);
  EXPECT_EQ(io::read_file(file), "first\ndrawn\n");
}

TEST_F(VerbsTest, WhatCannotBePrintedIsAFailure) {
  finish("run", false);
  const std::string run = folder / "run";
  const Said full = shell("lighthouse compare " + run + " 2>&1 >/dev/full");
  EXPECT_EQ(full.status, 2);
  EXPECT_EQ(full.text, "lighthouse: cannot write to standard output: No space left on device\n");
  // What is opened next does not take the number of a descriptor that is closed.
  stub_python("echo drawn");
  const std::string picture = folder / "runs.svg";
  const Said closed = shell("lighthouse plot " + run + " --out " + picture + " 2>&1 >&-");
  EXPECT_EQ(closed.status, 2);
  EXPECT_EQ(closed.text, "lighthouse: cannot write to standard output: Bad file descriptor\n");
  EXPECT_EQ(io::read_file(picture), "drawn\n");
}

TEST_F(VerbsTest, PlansAndTimesARunWithoutItsText) {
  fs::remove(folder / "text");
  const auto said_by = [&](std::vector<std::string> words) {
    words.insert(words.end(), {folder / "recipe.toml", "--threads", "2"});
    const int status = Program(words, folder / "output").wait();
    std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, 0) << said;
    return said;
  };
  const std::string plan = said_by({"plan"});
  EXPECT_NE(plan.find("All stages: "), std::string::npos) << plan;
  EXPECT_NE(plan.find("yes"), std::string::npos) << plan;
  EXPECT_NE(said_by({"plan", "--set", "run.dtype=bfloat16"}).find("copies in bfloat16"),
            std::string::npos);
  const std::string timed = said_by({"bench", "train", "--steps", "1"});
  EXPECT_NE(timed.find("ktok/s"), std::string::npos) << timed;
  const auto peak = [&](const char* recompute) {
    const std::string json = folder / "bench.json";
    said_by({"bench", "train", "--steps", "1", "--json", json, "--set", "model.num_hidden_layers=8",
             "--set", recompute});
    return nlohmann::json::parse(io::read_file(json)).at("rows")[0].at("peak_bytes").get<double>();
  };
  EXPECT_LT(peak("run.recompute_layers=true"), 0.8 * peak("run.recompute_layers=false"));
}

/// A run of pieces alone, Lighthouse beside them, and dense attention, by every verb.
TEST_F(VerbsTest, KnowsPieces) {
  const std::string pieces =
      "context = 256\nattention = 'local'\nlocal = 32\n[[stage]]\nname = 'both'\nsteps = 2\n";
  const std::string both =
      "context = 256\nattention = 'lighthouse'\nbudget = 8\ntile_budget = 4\nlocal = 32\n";
  std::ofstream(folder / "recipe.toml")
      << recipe_head(folder / "text") << "[[stage]]\nname = 'alone'\nsteps = 2\n"
      << pieces << both << dense_stage("dense", 1);
  const auto said_by = [&](const std::vector<std::string>& words) {
    const int status = Program(words, folder / "output").wait();
    std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, 0) << said;
    return said;
  };
  const auto expect = [](const std::string& said, std::initializer_list<const char*> words) {
    for (const char* word : words) EXPECT_NE(said.find(word), std::string::npos) << word << said;
  };
  const std::string run = folder / "run", recipe = folder / "recipe.toml";
  // The area is W / N, and (S / N)^2 more, where S is 16 roots and 4 entries for each of 8 refined,
  // at two levels.
  expect(said_by({"plan", recipe, "--threads", "2"}),
         {"12.5 %", "22.3 %", "100.0 %", "Then Lighthouse with pieces pays"});
  std::vector<std::string> timed{"plan", recipe, "--threads", "2"};
  for (const char* stage : {"0", "1", "2"}) {
    for (const char* length : {".steps=0", ".seconds=20"}) {
      timed.insert(timed.end(), {"--set", std::string("stage.") + stage + length});
    }
  }
  expect(said_by(timed), {"All stages: 60.0 s"});
  const std::string figures = folder / "bench.json";
  expect(said_by({"bench", "train", recipe, "--threads", "2", "--steps", "1", "--json", figures}),
         {"local 32", "lighthouse, local 32", "2 + 0 dense", "12.5 %"});
  const auto rows = nlohmann::json::parse(io::read_file(figures)).at("rows");
  EXPECT_EQ(rows[0].at("attention"), "local");
  EXPECT_EQ(rows[0].at("rows"), 0);
  EXPECT_EQ(rows[1].at("rows"), 80);
  EXPECT_EQ(rows[1].at("local"), 32);
  EXPECT_GT(rows[0].at("attention_ms"), 0);

  expect(said_by(arguments("run", false)), {"local 32", "lighthouse, local 32"});
  expect(said_by({"eval", run, "--sequences", "1"}), {"stage both, lighthouse, local 32"});
  expect(said_by({"compare", run}), {"local 32", "lighthouse, local 32"});
  said_by({"export", run, folder / "model"});
  expect(io::read_file(folder / "model/README.md"),
         {"with Lighthouse Attention (arXiv:2605.06554) and with attention inside pieces, after",
          "| alone | local 32 | 2 | 256 |", "| both | lighthouse, local 32 | 2 | 256 |"});
}

/// Attention within documents, by every verb that computes it.
TEST_F(VerbsTest, KnowsDocuments) {
  std::ofstream lines(folder / "lines.jsonl");
  for (int i = 0; i < 400; ++i) {
    lines << R"({"text": ")" << std::string(20 + i % 60, 'a') << " line " << i << "\"}\n";
  }
  lines.close();
  std::string head = recipe_head(folder / "lines.jsonl");
  head.insert(head.find("[optimizer]"), "attention = 'within'\nheld_out_share = 0.3\n");
  std::ofstream(folder / "recipe.toml")
      << head << "[[stage]]\nname = 'both'\nsteps = 2\ncontext = 256\nattention = 'lighthouse'\n"
      << "budget = 8\ntile_budget = 4\nlocal = 32\n";
  const auto said_by = [&](const std::vector<std::string>& words, int expected = 0) {
    const int status = Program(words, folder / "output").wait();
    std::string said = io::read_file(folder / "output");
    EXPECT_EQ(status, expected) << said;
    return said;
  };
  const auto expect = [](const std::string& said, std::initializer_list<const char*> words) {
    for (const char* word : words) EXPECT_NE(said.find(word), std::string::npos) << word << said;
  };
  const std::string run = folder / "run", recipe = folder / "recipe.toml";
  const std::string figures = folder / "figures.json";
  expect(said_by({"plan", recipe, "--threads", "2"}), {"Every sequence is one document"});
  expect(said_by({"bench", "train", recipe, "--threads", "2", "--steps", "1", "--json", figures}),
         {"Every sequence is one document"});
  // Each of 16 documents may leave all but one of a root's 16 tokens free: 15 roots more.
  EXPECT_EQ(nlohmann::json::parse(io::read_file(figures)).at("rows")[0].at("rows"), 80 + 15);
  std::vector<std::string> train = arguments("run", false);
  expect(said_by(train), {"documents_per_row", "\"within\"", "\"document\""});
  expect(said_by({"eval", run, "--sequences", "2", "--json", figures}),
         {"loss by position in the document", "0 to 63"});
  const auto eval = nlohmann::json::parse(io::read_file(figures));
  // No line has more than 128 tokens.
  EXPECT_LE(eval.at("by_position_dense").size(), 2u);
  EXPECT_EQ(eval.at("by_position_as_trained").size(), eval.at("by_position_dense").size());
  said_by({"passkey", run, "--contexts", "128", "--trials", "1", "--depths", "50"});
  train.insert(train.end(), {"--resume", "--force", "--set", "stage.both.documents_per_row=1"});
  expect(said_by(train, 2), {"stage 'both': documents_per_row is 1, and a row of 256 tokens has"});
}

TEST_F(VerbsTest, PasskeyMakesATableAndAHeatMap) {
  finish("run", false);
  stub_python();
  const auto passkey = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{"passkey", folder / "run", "--trials", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  ASSERT_EQ(passkey({"--contexts", "64,256", "--depths", "0,50,100", "--json", folder / "p.json",
                     "--plot", folder / "p.png"}),
            0)
      << io::read_file(folder / "output");
  const auto json = nlohmann::json::parse(io::read_file(folder / "p.json"));
  ASSERT_EQ(json.at("cells").size(), 6u);
  int64_t found = 0;
  for (const auto& cell : json.at("cells")) found += cell.at("found").get<int64_t>();
  EXPECT_DOUBLE_EQ(json.at("share").get<double>(), static_cast<double>(found) / 12);
  const std::string picture = io::read_file(folder / "p.png");
  EXPECT_TRUE(picture.ends_with("--out - --format png -\n" + io::read_file(folder / "p.json")))
      << picture;
  // What cannot be done is refused before the rest is.
  EXPECT_EQ(passkey({"--contexts", "64,20"}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("context is 20 tokens"), std::string::npos);
  EXPECT_EQ(io::read_file(folder / "output").find("context 64"), std::string::npos);
  const std::vector<std::pair<fs::path, std::string>> bad{
      {folder / "none/p.json", "no folder '" + (folder / "none").string()},
      {folder / "run", "is a folder; it must be a file"},
      {"", "is not the name of a file"}};
  for (const auto& [file, why] : bad) {
    EXPECT_EQ(passkey({"--json", file}), 2);
    const std::string said = io::read_file(folder / "output");
    EXPECT_NE(said.find("--json: '" + file.string()), std::string::npos) << said;
    EXPECT_NE(said.find(why), std::string::npos) << said;
    EXPECT_EQ(said.find("context"), std::string::npos) << said;
  }
}

TEST_F(VerbsTest, SweepsAGridAndGoesOnWhereItStopped) {
  const auto sweep = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all{
        "sweep", folder / "recipe.toml",    "--threads", "2",
        "--out", folder / "grid",           "--set",     "stage.dense.steps=2",
        "--set", "stage.lighthouse.steps=3"};
    all.insert(all.end(), more.begin(), more.end());
    return Program(all, folder / "output").wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  const std::vector<std::string> axes{"--vary", "stage.lighthouse.budget=4,8", "--vary",
                                      "optimizer.lr=1e-3,1e30"};
  ASSERT_EQ(sweep(axes), 0) << said();
  const auto all = nlohmann::json::parse(io::read_file(folder / "grid/sweep.json"));
  ASSERT_EQ(all.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(all[i].at("stage.lighthouse.budget"), i < 2 ? "4" : "8");
    EXPECT_EQ(all[i].at("optimizer.lr"), i % 2 == 0 ? "1e-3" : "1e30");
    const RunFolder run(folder / "grid" / all[i].at("run").get<std::string>());
    const auto summary = nlohmann::json::parse(io::read_file(run.summary()));
    EXPECT_EQ(all[i].at("dense_loss"), summary.at("stages")[1].at("dense_loss_after"));
  }
  EXPECT_NE(said().find("held-out loss, dense"), std::string::npos);

  // What is there stays; what was cut off ends with the same bits.
  const fs::path kept = folder / "grid" / all[0].at("run").get<std::string>();
  const fs::path cut = folder / "grid" / all[2].at("run").get<std::string>();
  const auto written = fs::last_write_time(kept / "metrics.jsonl");
  fs::remove(cut / "summary.json");
  fs::remove_all(Checkpoints(cut / "checkpoints").list().back());
  ASSERT_EQ(sweep(axes), 0) << said();
  EXPECT_EQ(fs::last_write_time(kept / "metrics.jsonl"), written);
  EXPECT_NE(said().find("resumed after step 4"), std::string::npos) << said();
  const auto again = nlohmann::json::parse(io::read_file(folder / "grid/sweep.json"));
  EXPECT_EQ(again[2].at("dense_loss"), all[2].at("dense_loss"));

  // A run that fails does not keep the others from theirs.
  EXPECT_EQ(sweep({"--vary", "optimizer.max_skipped_steps=0,1", "--vary", "run.seed=3", "--set",
                   "optimizer.lr=1e30", "--set", "optimizer.warmup_steps=0", "--set",
                   "optimizer.weight_decay=0"}),
            1)
      << said();
  EXPECT_NE(said().find("FAILED: step "), std::string::npos) << said();
  EXPECT_NE(said().find("of 2 runs failed"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "run.seed=3,3"}), 2);
  EXPECT_NE(said().find("two runs of the grid would have the same folder, 'run.seed=3'"),
            std::string::npos);
  auto elsewhere = axes;
  elsewhere.insert(elsewhere.end(), {"--set", "run.eval_sequences=2"});
  EXPECT_EQ(sweep(elsewhere), 2);

  EXPECT_EQ(sweep({"--vary", "optimizer.lr"}), 2);
  EXPECT_NE(said().find("--vary is 'optimizer.lr'; it must be KEY=A,B"), std::string::npos);
  EXPECT_EQ(sweep({"--vary", "run.out=a,b"}), 2);
  EXPECT_NE(said().find("run.out cannot be varied"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "run.seed=1", "--vary", "run.seed=2"}), 2);
  EXPECT_NE(said().find("--vary is given twice for run.seed"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--vary", "stage.0.steps=1,2", "--vary", "stage.lighthouse.steps=3"}), 2);
  EXPECT_NE(said().find("the runs 'stage.0.steps=1_stage.lighthouse.steps=3' and 'stage.0.steps=2"),
            std::string::npos)
      << said();
  EXPECT_EQ(sweep({"--vary", "stage.lighthouse.dense_layers=[0,[1]"}), 2);
  EXPECT_NE(said().find("whose brackets do not match"), std::string::npos) << said();
  EXPECT_EQ(sweep({"--dry-run", "--vary", "stage.lighthouse.dense_layers=[0],[0,-2],[]"}), 0)
      << said();
  EXPECT_NE(said().find("2 of 3: stage.lighthouse.dense_layers=[0,-2]\n"), std::string::npos)
      << said();
  EXPECT_EQ(sweep({"--vary", "optimizer.lr=1e-3,-1"}), 2);
  EXPECT_NE(said().find("optimizer.lr is -1"), std::string::npos) << said();
  auto other = axes;
  other.insert(other.end(), {"--set", "run.seed=9"});
  EXPECT_EQ(sweep(other), 2);
  EXPECT_NE(said().find("has another recipe; choose another --out"), std::string::npos) << said();
  fs::resize_file(kept / "summary.json", 20);
  EXPECT_EQ(sweep(axes), 2);
  EXPECT_NE(said().find((kept / "summary.json").string() + "' is not the summary of a run"),
            std::string::npos)
      << said();
}

/// The run that it comes in ends; the next does not begin.
TEST_F(VerbsTest, ASignalAfterTheLastStepOfARunEndsTheSweep) {
  Program sweep(
      {"sweep", folder / "recipe.toml", "--threads", "2", "--out", folder / "grid", "--vary",
       "run.seed=1,2", "--set", "run.eval_every_steps=0", "--set", "run.eval_sequences=20"},
      folder / "output");
  wait_for_lines(sweep, "grid/run.seed=1", 22 + 3);  // steps, and evaluations but the last
  sweep.kill(SIGINT);
  const int status = sweep.wait();  // -1: it came between the two runs
  EXPECT_TRUE(status == 128 + SIGINT || status == -1) << status;
  EXPECT_FALSE(fs::exists(RunFolder(folder / "grid/run.seed=2").summary()));
}

TEST_F(VerbsTest, PlotHandsRunsAndOptionsToPython) {
  stub_python();
  const auto plot = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "plot");
    return Program(words, folder / "output").wait();
  };
  const std::string picture = folder / "runs.svg";
  ASSERT_EQ(plot({"a", "b/", "--out", picture}), 0) << io::read_file(folder / "output");
  EXPECT_TRUE(io::read_file(picture).ends_with("plot.py --out - --format svg -- a b/\n"))
      << io::read_file(picture);
  EXPECT_NE(io::read_file(folder / "output").find("picture: " + picture), std::string::npos);
  ASSERT_EQ(plot({"a", "--out", picture, "--log-x", "--log-y", "--smooth", "5", "--no-raw"}), 0);
  EXPECT_TRUE(io::read_file(picture).ends_with("--log-x --log-y --smooth=5 --no-raw -- a\n"))
      << io::read_file(picture);
  const std::string before = io::read_file(picture);
  stub_python("echo 'plot: RUN is a' >&2; exit 1");
  EXPECT_EQ(plot({"a", "--out", picture}), 2);
  EXPECT_EQ(io::read_file(folder / "output"), "plot: RUN is a\n");
  EXPECT_EQ(io::read_file(picture), before);
  EXPECT_EQ(plot({"a", "--out", folder / "runs.jpg"}), 2);
  EXPECT_NE(io::read_file(folder / "output").find("it must be png, svg or pdf"), std::string::npos);
}

TEST_F(VerbsTest, ComparesRunsThatHaveEnded) {
  finish("first", false);
  finish("second", false);
  stub_python();
  const fs::path figures = folder / "c.json", picture = folder / "c.svg";
  const auto compare = [&](const std::string& other) {
    return Program({"compare", folder / "first", other, "--json", figures, "--plot", picture},
                   folder / "output")
        .wait();
  };
  const auto said = [&] { return io::read_file(folder / "output"); };
  const std::string same = "ends with a held-out loss that is the same to three digits";
  ASSERT_EQ(compare(folder / "second"), 0) << said();
  EXPECT_NE(said().find(same), std::string::npos) << said();
  EXPECT_TRUE(
      io::read_file(picture).ends_with("--out - --format svg -\n" + io::read_file(figures)));
  const auto runs = nlohmann::json::parse(io::read_file(figures)).at("runs");
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[1].at("name"), "second");
  EXPECT_EQ(runs[0].at("speed_up"), 1);
  EXPECT_EQ(runs[0].at("leak_dense"), nullptr);
  const fs::path of_first = RunFolder(folder / "first").summary();
  EXPECT_EQ(runs[0].at("stages"), nlohmann::json::parse(io::read_file(of_first)).at("stages"));
  EXPECT_EQ(runs[0].at("evals").back().at("dense_loss"), runs[0].at("dense_loss"));

  // Folders of one name are told apart by their paths.
  fs::create_directories(folder / "other");
  fs::copy(folder / "first", folder / "other/first", fs::copy_options::recursive);
  ASSERT_EQ(compare(folder / "other/first"), 0) << said();
  const auto twins = nlohmann::json::parse(io::read_file(figures)).at("runs");
  EXPECT_EQ(twins[0].at("name"), (folder / "first").string());
  EXPECT_EQ(twins[1].at("name"), (folder / "other/first").string());

  // Where both are measured on the same sequences, these decide whether one is better.
  const auto measured = [&](const char* run, std::initializer_list<double> losses) {
    io::write_atomically(folder / run / "eval.json",
                         nlohmann::json{{"of_sequences_dense", losses},
                                        {"leak_dense", nlohmann::json::array()},
                                        {"leak_as_trained", nlohmann::json::array()}}
                             .dump());
  };
  const auto second_ends_with = [&](double loss) {
    const fs::path file = RunFolder(folder / "second").summary();
    auto all = nlohmann::json::parse(io::read_file(file));
    all.at("stages")[1]["dense_loss_after"] = loss;
    io::write_atomically(file, all.dump());
  };
  const std::string of_second = io::read_file(RunFolder(folder / "second").summary());
  second_ends_with(1);
  measured("first", {3, 4, 5});
  measured("second", {2.9, 3.8, 4.7});
  ASSERT_EQ(compare(folder / "second"), 0) << said();
  EXPECT_NE(said().find("lower (-0.200 +- 0.058 over the sequences of eval): second is better"),
            std::string::npos)
      << said();
  measured("second", {2.9, 4.1, 5.1});
  ASSERT_EQ(compare(folder / "second"), 0) << said();
  EXPECT_NE(said().find("(0.033 +- 0.067 over the sequences of eval): these sequences cannot"),
            std::string::npos)
      << said();
  fs::remove(folder / "second/eval.json");
  ASSERT_EQ(compare(folder / "second"), 0) << said();
  EXPECT_NE(said().find("nats lower: second is better at the end."), std::string::npos) << said();
  fs::remove(folder / "first/eval.json");
  io::write_atomically(RunFolder(folder / "second").summary(), of_second);

  // The table and the figures stay where the picture fails.
  fs::remove(figures);
  fs::remove(picture);
  stub_python("exit 1");
  EXPECT_EQ(compare(folder / "second"), 2);
  EXPECT_NE(said().find(same), std::string::npos) << said();
  EXPECT_TRUE(fs::exists(figures));
  EXPECT_FALSE(fs::exists(picture));
  stub_python();

  const fs::path summary = RunFolder(folder / "second").summary();

  // A loss that is not a number is never better, whichever run it is of.
  const std::string written = io::read_file(summary);
  auto lost = nlohmann::json::parse(written);
  lost.at("stages")[1]["dense_loss_after"] = nullptr;
  io::write_atomically(summary, lost.dump());
  ASSERT_EQ(compare(folder / "second"), 0) << said();
  EXPECT_NE(said().find("a held-out loss that is not a number: first is better."),
            std::string::npos)
      << said();
  ASSERT_EQ(Program({"compare", folder / "second", folder / "first"}, folder / "output").wait(), 0);
  EXPECT_NE(said().find("where that of second is not a number: first is better."),
            std::string::npos)
      << said();
  io::write_atomically(summary, written);

  fs::resize_file(summary, fs::file_size(summary) - 10);
  EXPECT_EQ(compare(folder / "second"), 2);
  EXPECT_NE(said().find(summary.string() + "' is not the summary of a run: "), std::string::npos)
      << said();
  fs::remove(summary);
  EXPECT_EQ(compare(folder / "second"), 2);
  EXPECT_NE(said().find("RUN is '" + (folder / "second").string() + "', which has no summary.json"),
            std::string::npos)
      << said();
}

}  // namespace
}  // namespace lighthouse::app
