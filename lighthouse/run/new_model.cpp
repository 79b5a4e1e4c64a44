#include "lighthouse/run/new_model.h"

#include <ATen/Context.h>

#include <mutex>

namespace lighthouse::run {

std::shared_ptr<model::LanguageModel> new_model(const Recipe& recipe, c10::Device device) {
  std::shared_ptr<model::LanguageModel> model;
  {
    // All threads draw from one generator: ranks that are threads make their models in turn.
    static std::mutex drawing;
    const std::lock_guard<std::mutex> lock(drawing);
    at::manual_seed(recipe.run.seed);
    model = model::new_model(recipe.model);
  }
  model->to(device);
  model->set_recompute_mlp(recipe.run.recompute_mlp);
  model->set_recompute_layers(recipe.run.recompute_layers);
  if (recipe.parallel.context > 1) return model;  // a rank's part has positions of its own
  for (const StageRecipe& stage : recipe.stages) {
    model->reserve_context(stage.context);
    if (stage.dense_share > 0) model->reserve_context(stage.dense_context);
  }
  return model;
}

}  // namespace lighthouse::run
