#include "lighthouse/train/train.h"

#include <algorithm>
#include <ostream>

#include "lighthouse/core/check.h"
#include "lighthouse/io/file.h"
#include "lighthouse/model/base_model.h"
#include "lighthouse/model/hugging_face_config.h"
#include "lighthouse/run/checkpoint_space.h"
#include "lighthouse/run/parallel.h"
#include "lighthouse/run/recipe_changes.h"
#include "lighthouse/train/agreement.h"

namespace lighthouse::train {
namespace {

namespace fs = std::filesystem;

/// The run that a checkpoint is of.
run::RunFolder run_of(const fs::path& checkpoint) {
  return run::RunFolder(io::normal_path(checkpoint).parent_path().parent_path());
}

/// Throws unless a run has begun in the folder, if only to make it.
void check_run(const run::RunFolder& folder) {
  check_argument(fs::is_directory(folder.path()) &&
                     (fs::is_directory(folder.checkpoints()) || fs::is_empty(folder.path())),
                 "there is no run to resume in '", folder.path().string(),
                 "'; run.out (--out) must be the folder of a run");
}

/// The checkpoint to resume from; an empty path if there is none yet.
fs::path starting_point(const run::RunFolder& folder, const Start& start) {
  if (!start.from) {
    const auto all = run::Checkpoints(folder.checkpoints()).list();
    return all.empty() ? fs::path() : all.back();
  }
  fs::path path = io::normal_path(*start.from);
  check_argument(fs::is_directory(path) && fs::equivalent(path.parent_path(), folder.checkpoints()),
                 "--resume-from is '", start.from->string(),
                 "'; it must be one of the folders in '", folder.checkpoints().string(), "'");
  return path;
}

/// Keeps what an export will hand on of the model that the run begins with, since folders go.
void keep_base(const run::RunFolder& folder, const fs::path& from) {
  if (from.empty() || !fs::exists(from / "config.json") || fs::exists(folder.base())) return;
  const fs::path partial = folder.path() / ".partial-base";
  fs::remove_all(partial);
  model::copy_base(from, partial);
  io::rename_durably(partial, folder.base());
}

/// What to say where stages have a longer context than the model that the run begins with, whose
/// rotary embedding the recipe leaves as it was: it has never seen the angles of the new positions.
std::string warning_of_context(const run::Recipe& recipe) {
  if (recipe.init_from.empty()) return "";
  const model::ModelConfig base = model::read_config(recipe.init_from);
  const model::RopeScaling& scaling = base.rope_scaling;
  const int64_t context = model::context_of_base(recipe.init_from);
  int64_t longest = 0;
  for (const run::StageRecipe& stage : recipe.stages) longest = std::max(longest, stage.context);
  const bool is_unchanged =
      scaling == recipe.model.rope_scaling && base.rope_theta == recipe.model.rope_theta;
  if (context == 0 || longest <= context || !is_unchanged ||
      scaling.type == model::RopeType::kDynamic) {
    return "";
  }
  const bool is_scaled = scaling.type != model::RopeType::kDefault;
  const double longer = static_cast<double>(longest) / static_cast<double>(context);
  return message("a stage has a context of ", longest, ", and the model of model.init_from, '",
                 recipe.init_from, "', has max_position_embeddings = ", context,
                 ", with the same rotary embedding. For the longer context set ",
                 is_scaled ? "" : "model.rope_type = \"llama3\" and ",
                 "model.rope_scaling_factor = ", scaling.factor * longer,
                 ", or a larger model.rope_theta (docs/extending.md)");
}

}  // namespace

int train(const run::Recipe& recipe, const Start& start, std::ostream& out, bool terminal,
          const Clock& clock, const distributed::World& world) {
  recipe.validate();
  check_agreement(world, facts_of(recipe, start));
  run::check_ranks(recipe, world.size());
  std::ostream nowhere(nullptr);
  std::ostream& said = world.is_first() ? out : nowhere;
  const run::RunFolder folder(recipe.run.out);
  const bool resumes = start.resume || start.from;
  const auto check_new = [&](bool is_new) {
    check_argument(is_new, "the run's folder '", folder.path().string(),
                   "' already exists; resume the run (--resume), or choose another folder (--out)");
  };
  std::optional<io::Lock> lock;  // outlives the trainer, whose end waits for the checkpoint
  const auto take_folder = [&] {
    fs::create_directories(folder.checkpoints());
    lock.emplace(folder.lock(), message("the run's folder '", folder.path().string(), "'"));
  };
  fs::path from;
  on_first_rank(world, [&] {
    if (resumes) {
      check_run(folder);
      take_folder();
      from = starting_point(folder, start);
    } else {
      check_new(!fs::exists(folder.path()) || fs::is_empty(folder.path()));
    }
    const bool begins = from.empty() && !start.branch;
    for (const std::string& warning : {run::check_checkpoint_space(recipe, folder),
                                       begins ? warning_of_context(recipe) : std::string()}) {
      if (!warning.empty()) said << "WARNING: " << warning << '\n';
    }
  });
  // Ranks may have the folder in other places.
  const std::string name = world.broadcast(from.filename().string());
  if (!name.empty()) from = folder.checkpoints() / name;
  std::optional<run::Checkpoint> begin;
  if (start.branch) {
    begin = run::read_checkpoint(*start.branch);
    run::branch_changes(recipe, *begin);  // what cannot be branched from leaves no folder behind
  }
  const run::RunFolder first = start.branch ? run_of(*start.branch) : folder;
  Trainer trainer(recipe, folder, data::read_file_list(first.data()),
                  /*is_new=*/from.empty() && !begin, said, terminal && world.is_first(), clock,
                  world);
  // It is a barrier too: every rank has read the folder before the first one changes it.
  check_agreement(world, {{"the fingerprint of the data", message(trainer.fingerprint())}});

  if (from.empty()) {
    trainer.check_documents(begin ? begin->position : 0, begin ? begin->step : 0);
  }
  on_first_rank(world, [&] {
    if (resumes) return;
    take_folder();
    check_new(!folder.exists());  // another process may have begun there meanwhile
  });
  if (!from.empty()) {
    trainer.resume(from, start.force);
  } else if (resumes) {
    check_argument(!fs::exists(folder.branch()), "the run in '", folder.path().string(),
                   "' was to branch from another run and has no checkpoint; remove its folder, and "
                   "branch again");
    said << "there is no checkpoint yet: the run starts from the first step\n";
  }
  on_first_rank(world, [&] {
    if (begin && fs::exists(first.base())) {
      keep_base(folder, first.base());
    } else if (from.empty()) {
      keep_base(folder, recipe.init_from);
    }
  });
  if (begin) trainer.branch(first, *start.branch, *begin);
  begin.reset();  // a whole model and its optimizer
  on_first_rank(world, [&] {
    if (!fs::exists(folder.data())) data::write_file_list(folder.data(), trainer.files());
    io::write_atomically(folder.recipe(), recipe.to_toml());
  });
  return trainer.complete();
}

}  // namespace lighthouse::train
