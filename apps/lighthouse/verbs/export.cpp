#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "apps/lighthouse/checks.h"
#include "apps/lighthouse/run.h"
#include "apps/lighthouse/verbs.h"
#include "lighthouse/core/check.h"
#include "lighthouse/core/settings.h"
#include "lighthouse/data/file_list.h"
#include "lighthouse/io/file.h"
#include "lighthouse/io/safetensors.h"
#include "lighthouse/model/base_model.h"
#include "lighthouse/model/hugging_face.h"
#include "lighthouse/model/hugging_face_config.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;

struct ExportOptions {
  RunOptions run;
  std::string folder;
  std::string dtype = "float32";
};

/// How far a run had come with its stages.
struct Done {
  const run::StageRecipe* stage;
  int64_t steps;
};

std::vector<Done> stages_done(const run::Recipe& recipe, const run::Checkpoint& checkpoint) {
  std::vector<Done> done;
  const std::vector<int64_t>& starts = checkpoint.stage_starts;
  for (size_t i = 0; i < starts.size(); ++i) {
    const int64_t end = i + 1 < starts.size() ? starts[i + 1] : checkpoint.step;
    done.push_back({&recipe.stages[i], end - starts[i]});
  }
  return done;
}

/// The model is what dense attention makes of it; where none was trained last, that is not much.
std::string warning_of(const std::vector<Done>& done) {
  if (done.empty()) return "This model was not trained: it is as it was initialized.";
  if (run::computed_attention(*done.back().stage) == nn::Mode::kDense) return "";
  return "The last stage of training was not dense: the loss of this model is that of dense "
         "attention, which is better after a dense stage. Runs end with one.";
}

std::string model_card(const run::Recipe& recipe, const run::Checkpoint& checkpoint,
                       const run::MetricsHistory& history, const std::vector<Done>& done) {
  std::ostringstream out;
  out << "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# "
      << run::RunFolder(recipe.run.out).name() << "\n\n";
  if (const std::string warning = warning_of(done); !warning.empty()) {
    out << "**Warning.** " << warning << "\n\n";
  }
  const auto any = [&](const auto& of) {
    return std::ranges::any_of(done, [&](const Done& one) { return of(*one.stage) > 0; });
  };
  const bool lighthouse = any(run::rows_of), pieces = any(run::pieces_of);
  out << "An ordinary dense decoder (`" << to_string(recipe.model.model_type) << "`) of "
      << recipe.model.num_parameters() << " parameters, trained "
      << (lighthouse ? "with Lighthouse Attention (arXiv:2605.06554)" : "")
      << (lighthouse && pieces ? " and " : "") << (pieces ? "with attention inside pieces" : "")
      << (lighthouse || pieces ? ", " : "with dense attention, ") << "after " << checkpoint.step
      << " steps and " << checkpoint.position << " tokens";
  if (!recipe.init_from.empty())
    out << ", beginning with `" << fs::path(recipe.init_from).filename().string() << "`";
  out << ".\n\n| stage | attention | steps | context | tokens a step | settings |\n"
      << "| --- | --- | --- | --- | --- | --- |\n";
  for (const auto& [stage, steps] : done) {
    const nn::Mode attention = run::computed_attention(*stage);
    out << "| " << stage->name << " | " << run::attention_name(attention, run::pieces_of(*stage))
        << " | " << steps << (steps < stage->steps ? message(" of ", stage->steps) : "")
        << (stage->by_seconds() ? message(" (", stage->seconds, " s)") : "") << " | "
        << stage->context << " | " << stage->tokens_per_step() << " | ";
    if (attention == nn::Mode::kLighthouse) out << describe(stage->config);
    out << " |\n";
  }
  const run::EvalMetrics* last = nullptr;
  for (const run::EvalMetrics& eval : history.evals) {
    if (eval.step <= checkpoint.step) last = &eval;
  }
  if (last != nullptr) {
    out << "\nHeld-out dense loss after step " << last->step << ": " << last->dense_loss
        << " nats per token.\n";
  }
  out << "\nThe recipe of the run:\n\n```toml\n" << recipe.to_toml() << "```\n";
  return out.str();
}

/// Whether the run's tokens are bytes: those of text are. Without a list of its data, as of an
/// older run, its vocabulary alone tells.
bool is_of_bytes(const run::RunFolder& run, const run::Recipe& recipe) {
  const data::FileList files = data::read_file_list(run.data());
  return recipe.model.vocab_size == 256 && recipe.init_from.empty() &&
         std::ranges::none_of(
             files, [](const data::ListedFile& file) { return file.as.starts_with("tokens"); });
}

void write_byte_tokenizer(int64_t context, const fs::path& folder) {
  io::write_atomically(folder / "tokenizer.json", model::byte_tokenizer_json());
  const nlohmann::ordered_json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                      {"clean_up_tokenization_spaces", false},
                                      {"model_max_length", context}};
  io::write_atomically(folder / "tokenizer_config.json", config.dump(2) + '\n');
}

/// Hands on what the model that the run began with has besides weights.
void write_base(const fs::path& base, int64_t context, const fs::path& folder) {
  for (const fs::path& file : model::files_of_base(base)) {
    fs::create_directories((folder / file).parent_path());
    io::write_atomically(folder / file, file == "tokenizer_config.json"
                                            ? model::tokenizer_config_of_base(base, context)
                                            : io::read_file(base / file));
  }
}

/// Where what the run's first model had besides weights is; an empty path where that was a new one,
/// or, which is said, is nowhere.
fs::path base_of(const run::RunFolder& run, const std::string& init_from) {
  if (fs::exists(run.base())) return run.base();
  if (init_from.empty() || fs::exists(fs::path(init_from) / "config.json")) return init_from;
  std::cerr << "WARNING: the model that the run began with, '" << init_from
            << "', is gone: its tokenizer, special tokens and settings of generation are not "
               "exported\n";
  return {};
}

std::map<std::string, at::Tensor> in_type(std::map<std::string, at::Tensor> tensors,
                                          at::ScalarType type) {
  for (auto& [name, tensor] : tensors) tensor = tensor.to(type);
  return tensors;
}

void export_run(const ExportOptions& options) {
  check_argument(!fs::exists(options.folder) || fs::is_empty(options.folder), "DIR is '",
                 options.folder, "', which is not empty; it must be new");
  const at::ScalarType type = run::scalar_type(parse_word<run::Dtype>(options.dtype, "--dtype"));
  const auto [run, recipe, path, checkpoint] = open_run(options.run, std::cerr);
  const std::vector<Done> done = stages_done(recipe, checkpoint);
  const fs::path base = base_of(run, recipe.init_from);
  int64_t context = base.empty() ? recipe.stages.front().context : model::context_of_base(base);
  for (const Done& one : done) context = std::max(context, one.stage->context);

  const fs::path folder = options.folder;
  fs::create_directories(folder);
  io::write_safetensors(folder / "model.safetensors",
                        {in_type(checkpoint.model, type), {{"format", "pt"}}});
  const bool bytes = is_of_bytes(run, recipe);
  std::string tokenizer = "none: copy the files of the one that made the tokens";
  if (bytes) {
    write_byte_tokenizer(context, folder);
    tokenizer = "of bytes";
  } else if (!base.empty()) {
    write_base(base, context, folder);
    if (model::has_tokenizer(base)) tokenizer = "that of " + recipe.init_from;
  }
  io::write_atomically(folder / "README.md",
                       model_card(recipe, checkpoint, run::read_metrics(run.metrics()), done));
  const std::string config =
      model::to_config_json(recipe.model, context, /*end_token=*/bytes ? 0 : -1, options.dtype);
  // Last: with it the folder is a model.
  io::write_atomically(folder / "config.json",
                       base.empty() ? config : model::merge_config(base, config));
  std::cout << "model:     " << folder.string() << ", of checkpoint " << path.string()
            << "\ntokenizer: " << tokenizer << '\n';
  if (const std::string warning = warning_of(done); !warning.empty()) {
    std::cerr << "WARNING: " << warning << '\n';
  }
}

}  // namespace

void add_export(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "export", "Write a run's model as a folder that Hugging Face's from_pretrained loads");
  const auto options = std::make_shared<ExportOptions>();
  options->run.add_to(*verb);
  verb->add_option("DIR", options->folder, "folder to write, new or empty")
      ->check(not_empty())
      ->required();
  verb->add_option("--dtype", options->dtype,
                   "type that weights are stored in: " + all_words<run::Dtype>())
      ->capture_default_str();
  verb->callback([options] { export_run(*options); });
}

}  // namespace lighthouse::app
