#include "lighthouse/run/recipe.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <tuple>

#include "lighthouse/model/language_model.h"
#include "tests/support/small_model.h"
#include "tests/support/throws.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;
using std::invalid_argument;
using testing::throws;
using Paths = std::vector<std::string>;

constexpr const char* kRecipe = R"([model]
hidden_size = 64

[data]
path = "text"

[optimizer]
lr = 1e-3

[[stage]]
name = "short"
steps = 10
context = 1024

[[stage]]
name = "long"
steps = 20
context = 4096
batch = 2
attention = "lighthouse"
budget = 256
)";

class RecipeTest : public ::testing::Test {
 protected:
  RecipeTest()
      : folder_(fs::temp_directory_path() / ("lighthouse-recipe-" + std::to_string(getpid()))) {
    fs::create_directories(folder_);
  }
  ~RecipeTest() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }

  Recipe read(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    return Recipe::read(write("run.toml", text), overrides);
  }

  /// kRecipe with a part of it replaced.
  Recipe read_with(const std::string& part, const std::string& by) const {
    std::string text = kRecipe;
    text.replace(text.find(part), part.size(), by);
    return read(text);
  }

  fs::path folder_;
};

std::string printed(const Recipe& recipe) {
  std::ostringstream out;
  print(out, recipe);
  return out.str();
}

TEST_F(RecipeTest, RefusesToRecomputeLayersInCudaGraphs) {
  const auto read_both = [&] {
    read(kRecipe, {"run.device=cuda", "run.cuda_graphs=true", "run.recompute_layers=true"});
  };
  EXPECT_TRUE(throws<invalid_argument>(read_both, {"run.cuda_graphs and run.recompute_layers"}));
}

TEST_F(RecipeTest, HasWhatTheFileSaysAndElseTheDefaults) {
  const Recipe recipe = read(kRecipe);
  EXPECT_EQ(recipe.model.hidden_size, 64);
  EXPECT_EQ(recipe.model.num_hidden_layers, model::ModelConfig{}.num_hidden_layers);
  EXPECT_EQ(recipe.data.path, Paths{"text"});
  EXPECT_EQ(recipe.optimizer.lr, 1e-3);
  EXPECT_EQ(recipe.optimizer.beta2, OptimizerRecipe{}.beta2);
  EXPECT_EQ(recipe.run.out, RunRecipe{}.out);
  ASSERT_EQ(recipe.stages.size(), 2u);
  EXPECT_EQ(recipe.stages[0].name, "short");
  EXPECT_EQ(recipe.stages[0].attention, nn::Mode::kDense);
  EXPECT_EQ(recipe.stages[0].batch, 1);
  EXPECT_EQ(recipe.stages[1].context, 4096);
  EXPECT_EQ(recipe.stages[1].attention, nn::Mode::kLighthouse);
  EXPECT_EQ(recipe.stages[1].config.budget, 256);
  EXPECT_EQ(recipe.stages[1].config.levels, Config{}.levels);
  EXPECT_EQ(recipe.total_steps(), 30);
}

TEST_F(RecipeTest, TakesOnePathOfDataOrMany) {
  const std::vector<std::pair<std::string, Paths>> cases{
      {"[\"books\", 'code/**/*.py']", {"books", "code/**/*.py"}},
      {"2026", {"2026"}},
      {"[\"one\"]", {"one"}}};
  for (const auto& [text, paths] : cases) {
    const Recipe recipe = read(kRecipe, {"data.path=" + text});
    EXPECT_EQ(recipe.data.path, paths);
    EXPECT_EQ(read(recipe.to_toml()).data.path, paths);
  }
}

TEST_F(RecipeTest, RoundTripsThroughToml) {
  const std::vector<std::string> overrides{
      "data.path=\"a \\\"quoted\\\" \\\\ path\\n\\u007f\"",
      "data.held_out_share=0.1",
      "data.documents=folders",
      "data.folder_depth=3",
      "data.shuffle_block=98304",
      "data.attention=within",
      "data.end_token=3",
      "model.tie_word_embeddings=true",
      "model.rope_theta=500000",
      "model.model_type=qwen2",
      "model.rope_type=yarn",
      "model.rope_scaling_factor=4",
      "model.rope_truncate=false",
      "optimizer.eps=1e-12",
      "run.seed=9223372036854775807",
      "parallel.context=2",
      "parallel.exchange=heads",
      "parallel.shard_optimizer=false",
      "parallel.timeout=2.5",
      "stage.long.local=64",
      "stage.long.documents_per_row=77",
      "stage.long.selection=causal",
      "stage.long.dense_layers=[0, -1]",
      "stage.long.dense_share=0.3333333333333333",
      "stage.long.dense_context=512",
      "stage.long.micro_batch=1",
  };
  const Recipe before = read(kRecipe, overrides);
  const Recipe after = read(before.to_toml());
  EXPECT_EQ(after.to_toml(), before.to_toml());
  EXPECT_EQ(after.data.path, Paths{"a \"quoted\" \\ path\n\x7f"});
  EXPECT_EQ(after.data.documents, data::Documents::kFolders);
  EXPECT_EQ(after.data.folder_depth, 3);
  EXPECT_EQ(after.data.shuffle_block, 98304);
  EXPECT_EQ(after.model, before.model);
  EXPECT_EQ(after.model.rope_theta, 500000);
  EXPECT_EQ(after.run.seed, 9223372036854775807);
  EXPECT_EQ(after.parallel.context, 2);
  EXPECT_EQ(after.parallel.exchange, distributed::ExchangeChoice::kHeads);
  EXPECT_FALSE(after.parallel.shard_optimizer);
  EXPECT_EQ(after.parallel.timeout, 2.5);
  EXPECT_EQ(after.stages[1].config, before.stages[1].config);
  EXPECT_EQ(after.data.attention, data::Attention::kWithin);
  EXPECT_EQ(after.data.positions, data::Positions::kDocument);
  EXPECT_EQ(after.data.end_token, 3);
  EXPECT_EQ(after.stages[0].documents_per_row, 16);
  EXPECT_EQ(after.stages[1].documents_per_row, 77);
  EXPECT_EQ(read(kRecipe, {"stage.long.scorer=dilated"}).stages[1].config.scorer, Scorer::kDilated);
  EXPECT_EQ(after.stages[1].config.selection, SelectionRule::kCausal);
  EXPECT_EQ(after.stages[1].dense_layers, (std::vector<int64_t>{0, -1}));
  EXPECT_EQ(after.stages[1].dense_share, 0.3333333333333333);
}

TEST_F(RecipeTest, NamesUnknownKeysWithTheirPlaceAndTheNearestKnownOne) {
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("hidden_size", "hiden_size"); },
      {"run.toml:2:1: ", "model has no key 'hiden_size'", "did you mean 'hidden_size'?"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read_with("hidden_size", "preste"); },
                                       {"run.toml:2:1: ", "did you mean 'preset'?"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("[optimizer]", "[optimiser]"); },
      {"run.toml:7:2: ", "no section 'optimiser'", "did you mean 'optimizer'?"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("batch = 2", "  bach = 2"); },
      {"run.toml:19:3: ", "stage.1 has no key 'bach'", "did you mean 'batch'?"}));
}

/// What every stage, evaluations and an exported model must share is no setting of one stage.
TEST_F(RecipeTest, RefusesAScaleOfAStage) {
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("batch = 2", "scale = 0.1"); },
      {"run.toml:19:1: ", "stage.1 has the key 'scale'", "head_dim^(-1/2)"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"stage.0.scale=0.1"}); },
                                       {"--set stage.0.scale=0.1: ", "head_dim^(-1/2)"}));
  Recipe recipe = read(kRecipe);
  recipe.stages[1].config.scale = 0.1;
  EXPECT_TRUE(throws<invalid_argument>([&] { recipe.validate(); }, {"scale is 0.1"}));
}

TEST_F(RecipeTest, NamesWrongTypesWithTheirPlace) {
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("steps = 10", "steps = 10.5"); },
      {"run.toml:12:9: ", "stage.0", "steps", "floating-point", "must be an integer"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("1e-3", "\"fast\""); },
      {"run.toml:8:6: ", "optimizer", "lr", "string", "must be a number"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("\"text\"", "3"); },
      {"run.toml:5:8: ", "path", "must be a string or a list of strings"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("budget = 256", "dense_layers = [0, \"last\"]"); },
      {"run.toml:21:16: ", "dense_layers", "array", "must be a list of integers"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("hidden_size = 64", "tie_word_embeddings = 1"); },
      {"run.toml:2:23: ", "tie_word_embeddings", "must be true or false"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("\"lighthouse\"", "\"light\""); },
      {"run.toml:20:13: ", "attention is 'light'", "'dense', 'lighthouse' or 'local'"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read("data = 3\n"); },
                                       {"run.toml:1:8: ", "data is of type integer", "[data]"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read("[stage]\nsteps = 1\n"); },
                                       {"run.toml:1:", "stage is of type table", "[[stage]]"}));
}

TEST_F(RecipeTest, NamesValuesOutOfRangeWithTheirPlace) {
  EXPECT_TRUE(
      throws<invalid_argument>([&] { read_with("1e-3", "-1"); },
                               {"run.toml:8:6: ", "optimizer.lr is -1.0", "must be above 0"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("lr = 1e-3", "beta2 = 1.0"); },
      {"run.toml:8:9: ", "optimizer.beta2 is 1.0", "at least 0 and below 1"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("1e-3", "inf"); },
      {"run.toml:8:6: ", "optimizer.lr is inf", "must be above 0 and finite"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"run.seed=-1"}); },
                                       {"--set run.seed=-1: ", "run.seed is -1", "at least 0"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read_with("steps = 10", "steps = -1"); },
                                       {"run.toml:12:9: ", "stage.0.steps is -1", "at least 0"}));
}

TEST_F(RecipeTest, SaysWhereTheSyntaxIsWrong) {
  EXPECT_TRUE(
      throws<invalid_argument>([&] { read("[model]\nhidden_size = = 3\n"); }, {"run.toml:2:15: "}));
  EXPECT_TRUE(
      throws<std::runtime_error>([&] { Recipe::read(folder_ / "none.toml"); }, {"none.toml"}));
}

TEST_F(RecipeTest, TakesOverridesOfEveryKind) {
  const Recipe recipe = read(
      kRecipe, {"optimizer.lr=2", "stage.0.steps=7", "stage.long.steps=8", "data.path=other/text",
                "data.path=a=b.c", "run.log_every_steps=3", "stage.0.name=first",
                "stage.first.batch=5", "model.tie_word_embeddings=true", "run.out=2026"});
  EXPECT_EQ(recipe.optimizer.lr, 2);
  EXPECT_EQ(recipe.stages[0].steps, 7);
  EXPECT_EQ(recipe.stages[1].steps, 8);
  EXPECT_EQ(recipe.data.path, Paths{"a=b.c"});
  EXPECT_EQ(recipe.run.log_every_steps, 3);
  EXPECT_EQ(recipe.stages[0].name, "first");
  EXPECT_EQ(recipe.stages[0].batch, 5);
  EXPECT_TRUE(recipe.model.tie_word_embeddings);
  EXPECT_EQ(recipe.run.out, "2026");  // bare, and a string all the same
}

TEST_F(RecipeTest, ARunsOwnRecipeIsOfTheRunInItsFolder) {
  Recipe recipe = read(kRecipe, {"run.out=runs/original"});
  recipe.init_from = "model/that/is/gone";
  for (const char* name : {"copy", "project"}) fs::create_directories(folder_ / name);
  fs::create_directory(folder_ / "copy/checkpoints");
  const fs::path own = write("copy/recipe.toml", recipe.to_toml());
  EXPECT_EQ(Recipe::read(own).run.out, folder_ / "copy");
  EXPECT_EQ(Recipe::read(own, {"run.out=other"}).run.out, "other");
  const auto before = fs::current_path();
  fs::current_path(folder_ / "copy");
  EXPECT_EQ(Recipe::read("recipe.toml").run.out, ".");
  fs::current_path(before);
  // Of no run, it says where one is to be.
  recipe.init_from.clear();
  EXPECT_EQ(Recipe::read(write("project/recipe.toml", recipe.to_toml())).run.out, "runs/original");
  EXPECT_EQ(Recipe::read(write("copy/other.toml", recipe.to_toml())).run.out, "runs/original");
}

TEST_F(RecipeTest, NamesOverridesThatAreWrong) {
  const auto with = [&](const std::string& given) { return [=, this] { read(kRecipe, {given}); }; };
  EXPECT_TRUE(throws<invalid_argument>(
      with("optimizer.rl=1"), {"--set optimizer.rl=1: ", "no key 'rl'", "did you mean 'lr'?"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("optimzer.lr=1"), {"--set optimzer.lr=1: ", "'optimzer'", "did you mean 'optimizer'?"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("stage.lnog.steps=1"), {"--set stage.lnog.steps=1: ", "did you mean 'stage.long'?"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.2.steps=1"), {"no section 'stage.2'"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("parallel.exchange=tree"),
      {"exchange is 'tree'", "it must be 'auto', 'heads', 'gather' or 'ring'"}));
  EXPECT_TRUE(throws<invalid_argument>(with("parallel.timeout=0"),
                                       {"parallel.timeout is 0.0", "above 0 and at most 1e+06"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("optimizer.lr=fast"), {"--set optimizer.lr=fast: ", "string", "must be a number"}));
  EXPECT_TRUE(
      throws<invalid_argument>(with("optimizer.lr=0"), {"--set optimizer.lr=0: ", "above"}));
  EXPECT_TRUE(throws<invalid_argument>(with("data.path=[1]"),
                                       {"--set data.path=[1]: ", "array", "must be a string"}));
  EXPECT_TRUE(
      throws<invalid_argument>(with("stage.0.attention=true"),
                               {"--set", "attention is 'true'", "'dense', 'lighthouse' or"}));
  for (const char* text : {"optimizer.lr", "lr=1", "=1", ""}) {
    EXPECT_TRUE(throws<invalid_argument>(with(text), {"section.key=value"})) << text;
  }
}

TEST_F(RecipeTest, TakesTheModelFromAPresetAndOverridesIt) {
  fs::create_directories(folder_ / "models");
  write("models/a.toml", "[model]\nhidden_size = 32\nhead_dim = 8\nnum_hidden_layers = 3\n");
  write("models/b.toml", "[model]\nhidden_size = 16\n");
  std::string text = kRecipe;
  text.insert(text.find("hidden_size"), "preset = \"models/a.toml\"\n");
  Recipe recipe = read(text, {"model.num_hidden_layers=5"});
  EXPECT_EQ(recipe.model.hidden_size, 64);  // of the recipe
  EXPECT_EQ(recipe.model.head_dim, 8);
  EXPECT_EQ(recipe.model.num_hidden_layers, 5);
  recipe = read("[data]\npath = \"x\"\n[[stage]]\nname = \"a\"\nsteps = 1\ncontext = 8\n",
                {"model.preset=models/b.toml", "stage.0.dense_layers=[]"});
  EXPECT_EQ(recipe.model.hidden_size, 16);

  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"model.preset=models/c.toml"}); },
                                       {"--set model.preset=models/c.toml: ", "c.toml"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"model.preset=3"}); },
                                       {"preset", "must be a string"}));
  write("models/b.toml", "[model]\nhiden_size = 16\n");
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"model.preset=models/b.toml"}); },
                                       {"models/b.toml:2:1: ", "did you mean 'hidden_size'?"}));
  write("models/b.toml", "[model]\n[data]\n");
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"model.preset=models/b.toml"}); },
                                       {"models/b.toml:2:", "no section 'data'"}));
}

TEST_F(RecipeTest, RefusesRunsThatCannotBeRun) {
  const auto with = [&](const std::string& given) { return [=, this] { read(kRecipe, {given}); }; };
  const std::string file = "run.toml: ";
  EXPECT_TRUE(throws<invalid_argument>(with("model.vocab_size=1"), {"vocab_size is 1"}));
  EXPECT_TRUE(throws<invalid_argument>(with("model.head_dim=7"), {file, "model", "head_dim is 7"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("model.model_type=gpt2"), {"model_type is 'gpt2'; it must be 'llama', 'mistral' or "}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] {
        read(kRecipe, {"model.rope_scaling_factor=8", "model.rope_type=default"});
      },
      {file, "rope_scaling_factor is 8", "rope_type"}));
  for (const char* path : {"\"\"", "[]", "['a', '']"}) {
    EXPECT_TRUE(throws<invalid_argument>(with(std::string("data.path=") + path),
                                         {file, "data.path is empty"}));
  }
  EXPECT_TRUE(throws<invalid_argument>(with("run.out=\"\""), {file, "run.out is empty"}));
  EXPECT_TRUE(throws<invalid_argument>(with("run.keep_checkpoints=1"), {"keep_checkpoints is 1"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.0.name=a b"), {file, "name is 'a b'"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.0.name=long"), {file, "are named 'long'"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.1.micro_batch=3"),
                                       {file, "stage 'long'", "micro_batch is 3", "batch", "2"}));
  EXPECT_TRUE(throws<invalid_argument>(
      with("stage.1.steps=1000000000000"),
      {file, "stage 'long'", "steps * batch * context is 8.192e+15", "at most 1e+15"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.1.dense_share=0.5"),
                                       {file, "stage 'long'", "dense_context is 0", "4096"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.1.dense_layers=[6]"),
                                       {file, "stage 'long'", "dense_layers has 6", "-6 to 5"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.1.dense_layers=[-7]"), {"dense_layers has -7"}));
  EXPECT_TRUE(throws<invalid_argument>(with("stage.1.budget=200"),
                                       {file, "stage 'long'", "budget is 200", "128"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] {
        read(kRecipe, {"stage.1.levels=40", "stage.1.budget=128"});
      },
      {file, "stage 'long'", "levels is 40"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read("[data]\npath = \"x\"\n"); },
                                       {"the recipe has no stages"}));
}

TEST_F(RecipeTest, HasStagesBySteps) {
  const Recipe recipe = read(kRecipe);
  EXPECT_FALSE(recipe.by_seconds());
  EXPECT_EQ(recipe.total_steps(), 30);
  EXPECT_EQ(recipe.total_seconds(), 0);
  EXPECT_NE(printed(recipe).find(", steps: 30"), std::string::npos);
}

TEST_F(RecipeTest, HasStagesBySeconds) {
  const std::vector<std::string> timed{"stage.0.steps=0", "stage.0.seconds=36.5", "stage.1.steps=0",
                                       "stage.1.seconds=26"};
  const Recipe recipe = read(kRecipe, timed);
  EXPECT_TRUE(recipe.by_seconds());
  EXPECT_EQ(recipe.total_seconds(), 62.5);
  EXPECT_EQ(recipe.total_steps(), 0);
  EXPECT_EQ(read(recipe.to_toml()).to_toml(), recipe.to_toml());
  const std::string table = printed(recipe);
  EXPECT_NE(table.find(", seconds of training: 62.5"), std::string::npos) << table;
  EXPECT_EQ(table.find("note:"), std::string::npos) << table;
}

TEST_F(RecipeTest, RefusesStagesOfNeitherOrBothOrMixed) {
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read_with("steps = 10\n", ""); },
      {"stage 'short'", "steps is 0 and seconds is 0", "one of the two must be above 0"}));
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"stage.0.seconds=2"}); },
                                       {"stage 'short'", "steps is 10 and seconds is 2"}));
  EXPECT_TRUE(throws<invalid_argument>(
      [&] {
        read(kRecipe, {"stage.1.steps=0", "stage.1.seconds=2"});
      },
      {"stage 'short' has steps and stage 'long' has seconds", "all have steps or all have"}));
  for (const char* seconds : {"-1", "inf"}) {
    EXPECT_TRUE(throws<invalid_argument>(
        [&] { read(kRecipe, {std::string("stage.0.seconds=") + seconds}); },
        {"--set stage.0.seconds=", "stage.0.seconds is "}));
  }
}

/// Where every layer is dense, "lighthouse" would not be what the user asked for.
TEST_F(RecipeTest, RefusesALighthouseStageWithoutALighthouseLayer) {
  for (const char* layers : {"2", "3", "4"}) {
    EXPECT_TRUE(throws<invalid_argument>(
        [&] { read(kRecipe, {std::string("model.num_hidden_layers=") + layers}); },
        {"run.toml: ", "stage 'long'", "dense_layers is [0, 1, -2, -1]",
         std::string("none of the ") + layers + " layers", "attention must be 'dense'"}))
        << layers;
  }
  EXPECT_EQ(
      read(kRecipe, {"model.num_hidden_layers=4", "stage.long.dense_layers=[0]"}).stages.size(),
      2u);
  read(kRecipe, {"model.num_hidden_layers=4", "stage.long.attention=dense"});
}

/// The default is no mistake of the user's.
TEST_F(RecipeTest, HasNoDenseLayersThatAModelOfOneLayerLacks) {
  const std::string one = "model.num_hidden_layers=1";
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {one}); },
                                       {"dense_layers is [0, -1]", "none of the 1 layers"}));
  const Recipe recipe = read(kRecipe, {one, "stage.long.dense_layers=[]"});
  EXPECT_TRUE(recipe.stages[1].dense_layers.empty());
  EXPECT_EQ(recipe.stages[0].dense_layers, (std::vector<int64_t>{0, -1}));
  EXPECT_EQ(read(recipe.to_toml()).to_toml(), recipe.to_toml());
  EXPECT_TRUE(throws<invalid_argument>(
      [&] {
        read(kRecipe, {one, "stage.0.dense_layers=[1]"});
      },
      {"dense_layers has 1", "-1 to 0"}));
}

/// kRecipe with pieces beside Lighthouse in its second stage.
TEST_F(RecipeTest, HasOtherDefaultsWhereThereArePieces) {
  const std::string pieces = "stage.long.local=64";
  const auto long_stage = [&](const std::vector<std::string>& overrides) {
    return read(kRecipe, overrides).stages[1];
  };
  EXPECT_EQ(long_stage({}).config.selection, SelectionRule::kPublished);
  EXPECT_EQ(long_stage({}).dense_layers, (std::vector<int64_t>{0, 1, -2, -1}));
  EXPECT_EQ(long_stage({pieces}).config.selection, SelectionRule::kCausal);
  EXPECT_TRUE(long_stage({pieces}).dense_layers.empty());
  EXPECT_TRUE(long_stage({pieces, "stage.long.attention=local"}).dense_layers.empty());

  // What is given counts, and be it what would be the default without pieces.
  const StageRecipe given = long_stage(
      {pieces, "stage.long.selection=published", "stage.long.dense_layers=[0, 1, -2, -1]"});
  EXPECT_EQ(given.config.selection, SelectionRule::kPublished);
  EXPECT_EQ(given.dense_layers, (std::vector<int64_t>{0, 1, -2, -1}));
  const Recipe in_file = read_with("budget = 256", "local = 64\nselection = 'published'");
  EXPECT_EQ(in_file.stages[1].config.selection, SelectionRule::kPublished);
  EXPECT_TRUE(in_file.stages[1].dense_layers.empty());

  const Recipe whole = read(kRecipe, {pieces, "stage.long.selection=published"});
  EXPECT_EQ(read(whole.to_toml()).to_toml(), whole.to_toml());
}

TEST_F(RecipeTest, WarmsUpWhereAttentionOrContextChange) {
  const auto steps = [&](const std::vector<std::string>& overrides) {
    const Recipe recipe = read(kRecipe, overrides);
    EXPECT_EQ(read(recipe.to_toml()).to_toml(), recipe.to_toml());
    return std::vector<int64_t>{recipe.stages[0].warmup_steps, recipe.stages[1].warmup_steps};
  };
  const std::string longer = "stage.1.steps=100";
  EXPECT_EQ(steps({longer}), (std::vector<int64_t>{0, 20}));
  EXPECT_EQ(steps({}), (std::vector<int64_t>{0, 5}));  // of 20 steps
  EXPECT_EQ(steps({longer, "stage.1.warmup_steps=0"}), (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(steps({longer, "stage.1.warmup_steps=3"}), (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(steps({longer, "stage.1.attention=dense", "stage.1.context=1024"}),
            (std::vector<int64_t>{0, 0}));
}

/// What it lacks was not there when it was written.
TEST_F(RecipeTest, ARunsOwnRecipeHasNoNewDefaults) {
  fs::create_directories(folder_ / "run/checkpoints");
  std::string text = kRecipe;
  text += "local = 64\n";
  const Recipe recipe = Recipe::read(write("run/recipe.toml", text));
  EXPECT_EQ(recipe.stages[1].warmup_steps, 0);
  EXPECT_EQ(recipe.stages[1].config.selection, SelectionRule::kPublished);
  EXPECT_EQ(Recipe::parse(text, "text").stages[1].warmup_steps, 0);
  EXPECT_TRUE(throws<invalid_argument>([&] { read(kRecipe, {"stage.1.local_shift=3"}); },
                                       {"stage.1 has no key 'local_shift'"}));
}

TEST_F(RecipeTest, RefusesPiecesAloneWithoutPieces) {
  EXPECT_TRUE(throws<invalid_argument>(
      [&] { read(kRecipe, {"stage.1.attention=local"}); },
      {"stage 'long'", "attention is 'local' and local is 0", "tokens of a piece"}));
}

TEST_F(RecipeTest, PrintsOnlyWhatHasAnEffect) {
  const auto shows = [](const std::string& table, const std::string& key) {
    return table.find("\n  " + key + ' ') != std::string::npos;
  };
  const std::string local =
      printed(read(kRecipe, {"stage.long.attention=local", "stage.long.local=64",
                             "stage.long.budget=1536", "optimizer.warmup_steps=5"}));
  for (const char* key : {"local", "dense_layers", "dense_share", "warmup_steps"}) {
    EXPECT_TRUE(shows(local, key)) << key << '\n' << local;
  }
  for (const char* key : {"levels", "budget", "selection", "scorer", "local_shift"}) {
    EXPECT_FALSE(shows(local, key)) << key << '\n' << local;
  }
  EXPECT_EQ(local.find("note:"), std::string::npos) << local;
  const std::string both = printed(read(kRecipe, {"stage.long.local=64"}));
  for (const char* key : {"local", "levels", "budget", "selection", "dense_layers"}) {
    EXPECT_TRUE(shows(both, key)) << key << '\n' << both;
  }
  EXPECT_NE(printed(read(kRecipe, {"stage.long.attention=local", "stage.long.local=64"}))
                .find("stage 'long' has pieces alone"),
            std::string::npos);
}

TEST_F(RecipeTest, HasOtherDefaultsWithinDocuments) {
  const std::string within = "data.attention=within", pieces = "stage.long.local=64";
  const auto documents = [&](const std::vector<std::string>& overrides) {
    const Recipe recipe = read(kRecipe, overrides);
    EXPECT_EQ(read(recipe.to_toml()).to_toml(), recipe.to_toml());
    return std::tuple(recipe.data.positions, recipe.stages[0].documents_per_row,
                      recipe.stages[1].documents_per_row);
  };
  using enum data::Positions;
  EXPECT_EQ(documents({}), std::tuple(kRow, 0, 0));
  EXPECT_EQ(documents({within, pieces}), std::tuple(kDocument, 16, 16));
  EXPECT_EQ(documents({within, pieces, "stage.long.context=98304", "stage.short.context=8"}),
            std::tuple(kDocument, 8, 384));
  EXPECT_EQ(documents({within, pieces, "data.positions=row", "stage.0.documents_per_row=5"}),
            std::tuple(kRow, 5, 16));
  EXPECT_EQ(documents({within, pieces, "model.rope_type=dynamic"}), std::tuple(kRow, 16, 16));
  EXPECT_EQ(documents({"data.positions=document"}), std::tuple(kDocument, 0, 0));
}

TEST_F(RecipeTest, RefusesDocumentsThatCannotBeKeptApart) {
  const std::string within = "data.attention=within";
  const auto refused = [&](std::vector<std::string> overrides,
                           std::initializer_list<std::string> parts) {
    return throws<invalid_argument>([&] { read(kRecipe, overrides); }, parts);
  };
  EXPECT_TRUE(refused({"data.attention=inside"},
                      {"attention is 'inside'; it must be 'across' or 'within'"}));
  EXPECT_TRUE(refused({within}, {"stage 'long'", "attention is 'lighthouse', local is 0",
                                 "data.attention is 'within'", "tokens of a piece, such as 2048"}));
  read(kRecipe, {within, "stage.long.context=1024"});  // too short for Lighthouse: it is dense
  EXPECT_TRUE(refused({within, "stage.long.local=64", "stage.long.scorer=dilated"},
                      {"stage 'long'", "scorer is 'dilated'", "it must be 'norm'"}));
  EXPECT_TRUE(refused({"stage.short.documents_per_row=4"},
                      {"stage 'short'", "documents_per_row is 4", "data.attention is 'across'"}));
  EXPECT_TRUE(
      refused({within, "stage.long.local=64", "stage.short.documents_per_row=1025"},
              {"stage 'short'", "documents_per_row is 1025", "1 to context, which is 1024"}));
  EXPECT_TRUE(refused({"data.positions=document", "model.rope_type=dynamic"},
                      {"model.rope_type is 'dynamic'", "data.positions must be 'row'"}));
  EXPECT_TRUE(refused({"data.end_token=256"},
                      {"data.end_token is 256", "below model.vocab_size, which is 256"}));
}

TEST_F(RecipeTest, NotesDocumentsInFloat32OnAGpu) {
  const auto notes = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), {"run.device=cuda", "stage.long.local=64"});
    return printed(read(kRecipe, overrides)).find("memory of N^2") != std::string::npos;
  };
  EXPECT_TRUE(notes({"data.attention=within"}));
  EXPECT_FALSE(notes({"data.attention=within", "run.dtype=bfloat16"}));
  EXPECT_FALSE(notes({}));
}

TEST_F(RecipeTest, NotesWhereStepsInARowMayLearnFromOneFolder) {
  const auto notes = [&](const std::vector<std::string>& overrides) {
    return printed(read(kRecipe, overrides)).find("steps in a row may learn from one of them") !=
           std::string::npos;
  };
  EXPECT_TRUE(notes({"data.documents=folders"}));
  EXPECT_FALSE(notes({"data.documents=folders", "data.shuffle_block=4096"}));
  EXPECT_FALSE(notes({}));
}

TEST_F(RecipeTest, PrintsEveryFieldAndWhatEachStageGathers) {
  const Recipe recipe = read(kRecipe, {"optimizer.warmup_steps=5"});
  const std::string table = printed(recipe);
  std::istringstream lines(recipe.to_toml());
  for (std::string line; std::getline(lines, line);) {
    const std::string key = line.substr(0, line.find(' '));
    if (!key.empty() && key[0] != '[') {
      EXPECT_NE(table.find("  " + key + ' '), std::string::npos) << key;
      EXPECT_NE(describe_fields().find('.' + key + ' '), std::string::npos) << key;
    }
  }
  EXPECT_NE(describe_fields().find("model.preset "), std::string::npos);
  // Settings of Lighthouse are those of the one stage that has it.
  EXPECT_EQ(table.find("  budget "), table.rfind("  budget "));
  EXPECT_NE(table.find("tokens per sequence"), table.rfind("tokens per sequence"));
  // 4096 / 16 roots, and 4 entries for each of the 256 refined at two levels: 2304 of 4096 rows.
  EXPECT_NE(table.find("2304  0.562"), std::string::npos) << table;
  EXPECT_EQ(table.find("note:"), std::string::npos);
}

TEST_F(RecipeTest, NotesStagesThatWillBeDense) {
  EXPECT_NE(printed(read(kRecipe, {"stage.long.context=16"})).find("more tiles"),
            std::string::npos);
  EXPECT_NE(printed(read(kRecipe, {"stage.long.context=1024"})).find("1344 rows for 1024 tokens"),
            std::string::npos);
  EXPECT_NE(printed(read(kRecipe, {"stage.0.budget=128"})).find("stage 'short' is dense"),
            std::string::npos);
  EXPECT_NE(printed(read(kRecipe, {"optimizer.warmup_steps=30"})).find("only warms up"),
            std::string::npos);
}

TEST_F(RecipeTest, ScalesAsLlama3WhereAFactorHasNoType) {
  const auto type = [&](const std::string& lines) {
    std::string text = kRecipe;
    text.insert(text.find("hidden_size"), lines);
    EXPECT_EQ(Recipe::parse(text, "text").model, read(text).model);
    return read(text).model.rope_scaling.type;
  };
  EXPECT_EQ(type("rope_scaling_factor = 8.0\n"), model::RopeType::kLlama3);
  EXPECT_EQ(type("rope_scaling_factor = 8.0\nrope_type = \"yarn\"\n"), model::RopeType::kYarn);
  EXPECT_EQ(type("rope_scaling_factor = 1.0\n"), model::RopeType::kDefault);
}

TEST_F(RecipeTest, CountsTheParametersOfTheModel) {
  model::ModelConfig config;
  config.num_key_value_heads = 2;
  for (const bool tied : {false, true}) {
    config.tie_word_embeddings = tied;
    EXPECT_EQ(config.num_parameters(), testing::count_parameters(*model::new_model(config)));
  }
}

TEST_F(RecipeTest, ReadsAllRecipesThatAreThere) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(LIGHTHOUSE_RECIPES)) {
    if (entry.path().extension() != ".toml") continue;
    // A folder that a user is to name is not there.
    const Recipe recipe = Recipe::read(entry.path(), {"model.init_from="});
    EXPECT_EQ(printed(recipe).find("note:"), std::string::npos) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 4);
}

TEST_F(RecipeTest, HasThePapersModelAndDemosOfTheSameLength) {
  const fs::path recipes = LIGHTHOUSE_RECIPES;
  EXPECT_EQ(Recipe::read(recipes / "paper.toml").model.num_parameters(), 267973632);
  const Recipe dense = Recipe::read(recipes / "demo-dense.toml");
  for (const char* other : {"demo-pieces.toml", "demo-lighthouse.toml"}) {
    Recipe recipe = Recipe::read(recipes / other);
    EXPECT_EQ(recipe.total_seconds(), dense.total_seconds()) << other;
    for (const StageRecipe& stage : recipe.stages) {
      EXPECT_EQ(stage.tokens_per_step(), dense.stages[0].tokens_per_step()) << other;
    }
    recipe.stages = dense.stages;
    recipe.run.out = dense.run.out;
    EXPECT_EQ(recipe.to_toml(), dense.to_toml()) << other;
  }
}

}  // namespace
}  // namespace lighthouse::run
