#include "lighthouse/run/recipe.h"

#include <algorithm>
#include <ostream>
#include <set>
#include <sstream>

#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/recipe_fields.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::run {
namespace {

constexpr double kMostTokens = 1e15;  ///< of a stage: sums over stages stay far from overflow

void validate_stage(const StageRecipe& stage, int64_t layers) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  };
  check_argument(!stage.name.empty() && std::ranges::all_of(stage.name, is_letter), "name is '",
                 stage.name, "'; it must consist of letters, digits, - and _");
  check_argument(stage.micro_batch == 0 || stage.batch % stage.micro_batch == 0, "micro_batch is ",
                 stage.micro_batch, "; it must divide batch, which is ", stage.batch);
  check_argument((stage.steps > 0) != stage.by_seconds(), "steps is ", stage.steps,
                 " and seconds is ", stage.seconds,
                 "; one of the two must be above 0, and the other not be given");
  const auto steps = static_cast<double>(std::max<int64_t>(1, stage.steps));
  const double tokens =
      steps * static_cast<double>(stage.batch) * static_cast<double>(stage.context);
  check_argument(tokens <= kMostTokens, "steps * batch * context is ", tokens,
                 "; it must be at most ", kMostTokens);
  check_argument(stage.dense_share == 0 ||
                     (stage.dense_context > 0 && stage.context % stage.dense_context == 0),
                 "dense_context is ", stage.dense_context, "; with a dense_share of ",
                 stage.dense_share, " it must divide context, which is ", stage.context);
  for (const int64_t layer : stage.dense_layers) {
    check_argument(-layers <= layer && layer < layers, "dense_layers has ", layer, "; with ",
                   layers, " layers it must be from ", -layers, " to ", layers - 1);
  }
  check_argument(!stage.config.scale, "scale is ", stage.config.scale.value_or(0),
                 "; it must not be set: a model has one scale, head_dim^(-1/2)");
  stage.config.validate();
  check_argument(stage.attention != nn::Mode::kLocal || stage.config.local > 0,
                 "attention is 'local' and local is 0; local must be the tokens of a piece");
  if (computed_attention(stage) == nn::Mode::kDense) return;
  std::vector<int64_t> dense_layers = stage.dense_layers;
  check_argument(count_dense_layers(stage, layers) < layers, "dense_layers is ",
                 to_text(&dense_layers), ", which leaves none of the ", layers, " layers to ",
                 to_string(stage.attention),
                 " attention; it must name fewer, or attention must be 'dense'");
}

/// Throws unless attention can stay within documents, or crosses them, as the recipe says.
void validate_documents(const Recipe& recipe, const StageRecipe& stage) {
  const int64_t documents = stage.documents_per_row;
  if (recipe.data.attention == data::Attention::kAcross) {
    check_argument(documents == 0, "documents_per_row is ", documents,
                   " and data.attention is 'across'; it must be left out, unless attention stays "
                   "'within' documents");
    return;
  }
  check_argument(documents >= 1 && documents <= stage.context, "documents_per_row is ", documents,
                 " and data.attention is 'within'; it must be from 1 to context, which is ",
                 stage.context);
  if (computed_attention(stage) != nn::Mode::kLighthouse) return;
  check_argument(stage.config.local > 0,
                 "attention is 'lighthouse', local is 0 and data.attention is 'within'; then local "
                 "must be the tokens of a piece, such as 2048: the first tokens of a document hear "
                 "no row of it");
  check_argument(stage.config.scorer == Scorer::kNorm, "scorer is '",
                 to_string(stage.config.scorer), "' and data.attention is 'within'; it must be '",
                 to_string(Scorer::kNorm), "', the one whose scores see no other document");
}

/// What will run otherwise than the recipe seems to say, a sentence each.
std::vector<std::string> notes_of(const Recipe& recipe) {
  std::vector<std::string> notes;
  for (const StageRecipe& stage : recipe.stages) {
    const auto add = [&](const auto&... parts) {
      notes.push_back(message("stage '", stage.name, "' ", parts...));
    };
    if (stage.attention == nn::Mode::kDense && stage.config != Config{}) {
      add("is dense: its Lighthouse settings have no effect");
    }
    Config of_lighthouse = stage.config;
    of_lighthouse.local = 0;
    of_lighthouse.selection = Config().selection;
    if (stage.attention == nn::Mode::kLocal && of_lighthouse != Config{}) {
      add("has pieces alone: of its Lighthouse settings only local has an effect");
    }
    if (const std::string why = dense_because(stage); !why.empty()) add("will be dense: ", why);
    if (recipe.parallel.context > 1 &&
        recipe.parallel.exchange == distributed::ExchangeChoice::kAuto) {
      const auto [exchange, because] = exchange_of(recipe, stage);
      add("has the exchange '", to_string(exchange), "': ", because);
    }
  }
  if (recipe.parallel.context == 1 &&
      recipe.parallel.exchange != distributed::ExchangeChoice::kAuto) {
    notes.emplace_back("parallel.exchange has no effect: parallel.context is 1");
  }
  if (recipe.data.attention == data::Attention::kWithin && recipe.run.device.starts_with("cuda") &&
      recipe.run.dtype == Dtype::kFloat32) {
    notes.emplace_back(
        "attention within documents takes memory of N^2 in float32 on a GPU; run.dtype = "
        "'bfloat16' takes PyTorch's flash kernel");
  }
  if (recipe.data.documents == data::Documents::kFolders && recipe.data.shuffle_block == 0) {
    notes.emplace_back(
        "documents are folders, so steps in a row may learn from one of them, which costs loss; "
        "data.shuffle_block, the longest context, shuffles their parts");
  }
  if (!recipe.by_seconds() && recipe.optimizer.warmup_steps >= recipe.total_steps()) {
    notes.push_back(message("the learning rate only warms up: optimizer.warmup_steps is ",
                            recipe.optimizer.warmup_steps, " of ", recipe.total_steps(), " steps"));
  }
  return notes;
}

std::string fields_as_toml(Recipe recipe, bool all) {
  std::ostringstream out;
  for (const Section& section : sections(recipe)) {
    const auto decides = [](const Field& field) { return field.about != Decides::kNothing; };
    if (!all && std::ranges::none_of(section.fields, decides)) continue;
    out << (section.stage ? "[[stage]]" : '[' + section.name + ']') << '\n';
    for (const Field& field : section.fields) {
      if (!all && !decides(field)) continue;
      out << field.key << " = " << to_text(field.value) << '\n';
    }
    out << '\n';
  }
  return out.str();
}

}  // namespace

void Recipe::validate() const {
  Recipe copy = *this;
  for (const Section& section : sections(copy)) {
    for (const Field& field : section.fields) check_range(field, section.name);
  }
  check_part("model", [&] { model.validate(); });
  check_argument(!data.path.empty() && std::ranges::count(data.path, "") == 0,
                 "data.path is empty; it must be a file or folder of text");
  check_argument(!run.out.empty(), "run.out is empty; it must be a folder");
  check_argument(!run.cuda_graphs || run.device.starts_with("cuda"),
                 "run.cuda_graphs is true and run.device is '", run.device,
                 "'; CUDA graphs need a GPU");
  check_argument(!run.cuda_graphs || parallel.context == 1,
                 "run.cuda_graphs is true and parallel.context is ", parallel.context,
                 "; graphs do not hold what ranks exchange within a pass: one of the two must go, "
                 "run.cuda_graphs = false or parallel.context = 1");
  check_argument(model.rope_scaling.type != model::RopeType::kDynamic || parallel.context == 1,
                 "model.rope_type is 'dynamic' and parallel.context is ", parallel.context,
                 "; its angles go by the length of a whole sequence, which no rank has: "
                 "parallel.context must be 1");
  check_argument(
      model.rope_scaling.type != model::RopeType::kDynamic ||
          data.positions == data::Positions::kRow,
      "model.rope_type is 'dynamic' and data.positions is 'document'; its angles go by the "
      "length of a whole row: data.positions must be 'row'");
  check_argument(data.end_token < model.vocab_size, "data.end_token is ", data.end_token,
                 "; it must be below model.vocab_size, which is ", model.vocab_size);
  check_argument(!run.cuda_graphs || !run.recompute_layers,
                 "run.cuda_graphs and run.recompute_layers are both true; a graph cannot hold "
                 "layers that are recomputed: one of the two must be false");
  check_argument(!stages.empty(), "the recipe has no stages; it must have at least one [[stage]]");
  std::set<std::string> names;
  for (const StageRecipe& stage : stages) {
    check_part("stage '" + stage.name + "'", [&] {
      validate_stage(stage, model.num_hidden_layers);
      validate_documents(*this, stage);
      validate_parallel(*this, stage);
    });
    check_argument(stage.by_seconds() == by_seconds(), "stage '", stages.front().name, "' has ",
                   by_seconds() ? "seconds" : "steps", " and stage '", stage.name, "' has ",
                   by_seconds() ? "steps" : "seconds",
                   "; the stages of a run must all have steps or all have seconds, since the "
                   "learning rate follows the share of one of the two that is done");
    check_argument(names.insert(stage.name).second, "two stages are named '", stage.name,
                   "'; names of stages must differ");
  }
}

int64_t Recipe::total_steps() const {
  int64_t steps = 0;
  for (const StageRecipe& stage : stages) steps += stage.steps;
  return steps;
}

double Recipe::total_seconds() const {
  double seconds = 0;
  for (const StageRecipe& stage : stages) seconds += stage.seconds;
  return seconds;
}

std::string Recipe::to_toml() const { return fields_as_toml(*this, /*all=*/true); }

std::string Recipe::deciding_toml() const { return fields_as_toml(*this, /*all=*/false); }

void print(std::ostream& out, const Recipe& recipe) {
  Recipe copy = recipe;
  io::Table fields;
  for (const Section& section : sections(copy)) {
    fields.push_back({section.name});
    for (const Field& field : section.fields) {
      const auto is = [&](nn::Mode mode) { return section.stage->attention == mode; };
      if (field.about == Decides::kLighthouse && !is(nn::Mode::kLighthouse)) continue;
      if (field.about == Decides::kNotDense && is(nn::Mode::kDense)) continue;
      fields.push_back({"  " + field.key, to_text(field.value), field.help});
    }
  }
  io::print_table(out, fields, 3);
  const bool timed = recipe.by_seconds();
  out << "\nparameters: " << recipe.model.num_parameters() << ", "
      << (timed ? message("seconds of training: ", recipe.total_seconds())
                : message("steps: ", recipe.total_steps()))
      << "\n\n";
  io::Table stages{{"stage", "attention", timed ? "seconds" : "steps", "context", "batch",
                    timed ? "tokens a step" : "tokens", "warm-up", "rows S", "S/N", "local",
                    "area"}};
  for (const StageRecipe& stage : recipe.stages) {
    const auto or_none = [](int64_t number) { return number == 0 ? "-" : std::to_string(number); };
    const int64_t rows = rows_of(stage);
    const double share = static_cast<double>(rows) / static_cast<double>(stage.context);
    stages.push_back(
        {stage.name, std::string(to_string(computed_attention(stage))), message(stage.length()),
         std::to_string(stage.context), std::to_string(stage.batch),
         std::to_string(timed ? stage.tokens_per_step() : stage.tokens()),
         or_none(stage.warmup_steps), or_none(rows), rows == 0 ? "-" : io::fixed(share, 3),
         or_none(pieces_of(stage)),
         io::fixed(100 * attention_area(stage, recipe.model.num_hidden_layers), 1, " %")});
  }
  io::print_table(out, stages, 2);
  out << "local: tokens of pieces; area: pairs of positions that attention compares in a step, as "
         "a "
         "share of dense attention's\n";
  for (const std::string& note : notes_of(recipe)) out << "note: " << note << '\n';
}

std::string describe_fields() {
  Recipe defaults;
  defaults.stages.resize(1);
  // Not a field of a recipe, into which its keys are read.
  io::Table fields{{"model.preset", "", "TOML file, relative to the recipe, with keys of [model]"}};
  for (const Section& section : sections(defaults)) {
    for (const Field& field : section.fields) {
      std::string help = field.help;
      if (std::holds_alternative<Word>(field.value)) {
        help += message(" (", type_name(field.value), ')');
      }
      fields.push_back({message(section.name, ".", field.key), to_text(field.value), help});
    }
  }
  std::ostringstream out;
  io::print_table(out, fields, 3, "  ");
  return out.str();
}

}  // namespace lighthouse::run
