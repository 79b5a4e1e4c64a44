#include "lighthouse/run/checkpoint_space.h"

#include <algorithm>
#include <filesystem>

#include "lighthouse/core/check.h"
#include "lighthouse/io/table.h"
#include "lighthouse/run/checkpoint.h"

namespace lighthouse::run {
namespace {

namespace fs = std::filesystem;

std::string size(double bytes) {
  return bytes < 1 << 30 ? io::fixed(bytes / (1 << 20), 1, " MiB")
                         : io::fixed(bytes / (1 << 30), 1, " GiB");
}

/// The most checkpoints that are on the disk at once.
int64_t most_at_once(const Recipe& recipe) {
  const RunRecipe& run = recipe.run;
  // How many steps a run by seconds takes is not known: those kept for good are not counted.
  if (recipe.by_seconds()) return run.keep_checkpoints + 1;
  const int64_t steps = recipe.total_steps();
  const int64_t made =
      steps / run.checkpoint_every_steps + static_cast<int64_t>(recipe.stages.size());
  const int64_t for_good = run.keep_every_steps > 0 ? steps / run.keep_every_steps : 0;
  return std::min(made, run.keep_checkpoints + 1 + for_good);
}

}  // namespace

double checkpoint_bytes(const Recipe& recipe) {
  return 12 * static_cast<double>(recipe.model.num_parameters());
}

std::string check_checkpoint_space(const Recipe& recipe, int64_t present, double free,
                                   const std::string& where) {
  const double each = checkpoint_bytes(recipe);
  check_argument(each <= free, "there is no room for a checkpoint: it needs ", size(each), ", and ",
                 where, " has ", size(free), " free");
  const int64_t more = most_at_once(recipe) - present;
  if (static_cast<double>(more) * each <= free) return "";
  return message("the checkpoints may not fit: ", more, " more of ", size(each),
                 " each may be kept at once (run.keep_checkpoints is ", recipe.run.keep_checkpoints,
                 ", run.keep_every_steps is ", recipe.run.keep_every_steps, "), and ", where,
                 " has ", size(free), " free");
}

std::string check_checkpoint_space(const Recipe& recipe, const RunFolder& folder) {
  fs::path disk = fs::absolute(folder.checkpoints());
  while (!fs::exists(disk)) disk = disk.parent_path();
  std::error_code unknown;
  const fs::space_info space = fs::space(disk, unknown);
  if (unknown || space.capacity == 0) return "";
  const auto present = static_cast<int64_t>(Checkpoints(folder.checkpoints()).list().size());
  return check_checkpoint_space(recipe, present, static_cast<double>(space.available),
                                message("the disk of '", folder.path().string(), "'"));
}

}  // namespace lighthouse::run
