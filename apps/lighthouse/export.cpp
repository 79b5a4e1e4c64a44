#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "apps/lighthouse/run.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/core/geometry.h"
#include "lighthouse/data/corpus.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"
#include "lighthouse/model/hugging_face.h"
#include "lighthouse/train/metrics.h"
#include "lighthouse/train/stage.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;

struct Options {
  RunOptions run;
  std::string folder;
};

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json",
                                           "special_tokens_map.json", "tokenizer.model"};

/// How far a run had come with its stages.
struct Done {
  const train::StageRecipe* stage;
  int64_t steps;
};

std::vector<Done> stages_done(const train::Recipe& recipe, int64_t steps) {
  std::vector<Done> done;
  for (const train::StageRecipe& stage : recipe.stages) {
    if (steps <= 0) break;
    done.push_back({&stage, std::min(steps, stage.steps)});
    steps -= stage.steps;
  }
  return done;
}

/// The model is what dense attention makes of it; where none was trained last, that is not much.
std::string warning_of(const std::vector<Done>& done) {
  if (done.empty()) return "This model was not trained: it is as it was initialized.";
  if (!train::computes_lighthouse(*done.back().stage)) return "";
  return "The last stage of training was not dense: the loss of this model is that of dense "
         "attention, "
         "which is better after a dense stage. A run with Lighthouse ends with one.";
}

std::string model_card(const train::Recipe& recipe, const train::Checkpoint& checkpoint,
                       const train::MetricsHistory& history, const std::vector<Done>& done) {
  std::ostringstream out;
  out << "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# "
      << fs::path(recipe.run.out).filename().string() << "\n\n";
  if (const std::string warning = warning_of(done); !warning.empty()) {
    out << "**Warning.** " << warning << "\n\n";
  }
  out << "An ordinary dense Llama of " << recipe.model.num_parameters()
      << " parameters, trained with Lighthouse (arXiv:2605.06554), after " << checkpoint.step
      << " steps and " << checkpoint.position << " tokens";
  if (!recipe.init_from.empty())
    out << ", beginning with `" << fs::path(recipe.init_from).filename().string() << "`";
  out << ".\n\n| stage | attention | steps | context | tokens a step | settings |\n"
      << "| --- | --- | --- | --- | --- | --- |\n";
  for (const auto& [stage, steps] : done) {
    const bool lighthouse = train::computes_lighthouse(*stage);
    out << "| " << stage->name << " | " << train::attention_name(lighthouse) << " | "
        << steps << (steps < stage->steps ? message(" of ", stage->steps) : "") << " | "
        << stage->context << " | " << stage->batch * stage->context << " | ";
    if (lighthouse) {
      const Config& a = stage->attention;
      out << "levels " << a.levels << ", pooling factor " << a.pooling_factor << ", budget "
          << a.budget << ", tile budget " << a.tile_budget << ", scorer " << to_string(a.scorer)
          << ", selection " << to_string(a.selection);
    }
    out << " |\n";
  }
  const train::EvalMetrics* last = nullptr;
  for (const train::EvalMetrics& eval : history.evals) {
    if (eval.step <= checkpoint.step) last = &eval;
  }
  if (last != nullptr) {
    out << "\nHeld-out dense loss after step " << last->step << ": " << last->dense_loss
        << " nats per token.\n";
  }
  out << "\nThe recipe of the run:\n\n```toml\n" << recipe.to_toml() << "```\n";
  return out.str();
}

/// Tokenizer files: of bytes where text was trained on, else those of the model begun with.
std::string write_tokenizer(const train::Recipe& recipe, int64_t context, const fs::path& folder) {
  if (recipe.model.vocab_size == 256 && recipe.init_from.empty()) {
    io::write_atomically(folder / "tokenizer.json", model::byte_tokenizer_json());
    const nlohmann::ordered_json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                        {"clean_up_tokenization_spaces", false},
                                        {"model_max_length", context}};
    io::write_atomically(folder / "tokenizer_config.json", config.dump(2) + '\n');
    return "of bytes";
  }
  bool any = false;
  for (const char* name : kTokenizerFiles) {
    const fs::path from = fs::path(recipe.init_from) / name;
    if (recipe.init_from.empty() || !fs::exists(from)) continue;
    io::write_atomically(folder / name, io::read_file(from));
    any = true;
  }
  return any ? "that of " + recipe.init_from
             : "none: copy the files of the one that made the tokens";
}

void export_run(const Options& options) {
  check_argument(!fs::exists(options.folder) || fs::is_empty(options.folder), "DIR is '",
                 options.folder, "', which is not empty; it must be new");
  const auto [run, recipe, path, checkpoint] = open_run(options.run);
  const std::vector<Done> done = stages_done(recipe, checkpoint.step);
  int64_t context = 0;
  for (const train::StageRecipe& stage : recipe.stages) context = std::max(context, stage.context);

  const fs::path folder = options.folder;
  fs::create_directories(folder);
  const int64_t end_token = recipe.model.vocab_size == 256 && recipe.init_from.empty() ? 0 : -1;
  io::write_safetensors(folder / "model.safetensors", {checkpoint.model, {{"format", "pt"}}});
  const std::string tokenizer = write_tokenizer(recipe, context, folder);
  io::write_atomically(folder / "README.md",
                       model_card(recipe, checkpoint, train::read_metrics(run.metrics()), done));
  // Last: with it the folder is a model.
  io::write_atomically(folder / "config.json",
                       model::to_config_json(recipe.model, context, end_token));
  std::cout << "model:     " << folder.string() << ", of checkpoint " << path.string()
            << "\ntokenizer: " << tokenizer << '\n';
  if (const std::string warning = warning_of(done); !warning.empty()) {
    std::cerr << "WARNING: " << warning << '\n';
  }
}

}  // namespace

void add_export(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "export", "Writes a run's model as a folder that Hugging Face's from_pretrained loads");
  const auto options = std::make_shared<Options>();
  options->run.add_to(*verb);
  verb->add_option("DIR", options->folder, "folder to write, new or empty")->required();
  verb->callback([options] { export_run(*options); });
}

}  // namespace lighthouse::app
