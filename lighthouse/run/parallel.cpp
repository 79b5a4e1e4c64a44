#include "lighthouse/run/parallel.h"

#include <algorithm>

#include "lighthouse/core/check.h"
#include "lighthouse/core/geometry.h"
#include "lighthouse/run/stage.h"

namespace lighthouse::run {

using distributed::Exchange;

namespace {

/// Why the 2 W chunks of a sequence cannot select by themselves; empty where they can, or need not.
std::string why_not_by_chunks(const Recipe& recipe, const StageRecipe& stage) {
  const int64_t chunks = 2 * recipe.parallel.context;
  if (computed_attention(stage) != nn::Mode::kLighthouse) return "";
  if (stage.config.budget % chunks != 0) {
    return message("budget is ", stage.config.budget, ", not a multiple of ", chunks);
  }
  return lighthouse::dense_because(stage.context / chunks,
                                   distributed::chunk_config(stage.config, chunks / 2));
}

}  // namespace

distributed::ChosenExchange exchange_of(const Recipe& recipe, const StageRecipe& stage) {
  const nn::Mode attention = computed_attention(stage);
  return distributed::choose_exchange(
      recipe.parallel.exchange,
      {.ranks = recipe.parallel.context,
       .heads = recipe.model.num_attention_heads,
       .groups = recipe.model.num_key_value_heads,
       .rows = attention == nn::Mode::kDense ? stage.context : rows_of(stage),
       .has_pieces = attention != nn::Mode::kDense && stage.config.local > 0,
       .by_chunks = why_not_by_chunks(recipe, stage).empty(),
       .has_documents = recipe.data.attention == data::Attention::kWithin});
}

distributed::Context context_of(const Recipe& recipe, const StageRecipe& stage,
                                const distributed::World& context) {
  if (context.size() == 1) return {};
  return {
      .group = context.group(), .exchange = exchange_of(recipe, stage).exchange, .zigzag = true};
}

model::AttentionPlan attention_plan(const Recipe& recipe, const StageRecipe& stage,
                                    const distributed::World& context) {
  model::AttentionPlan plan = attention_plan(stage);
  plan.context = context_of(recipe, stage, context);
  return plan;
}

void validate_parallel(const Recipe& recipe, const StageRecipe& stage) {
  const int64_t ranks = recipe.parallel.context, chunks = 2 * ranks;
  if (ranks == 1) return;
  const auto check_length = [&](const char* key, int64_t tokens) {
    check_argument(tokens % chunks == 0, key, " is ", tokens, " and parallel.context is ", ranks,
                   "; the ranks cut a sequence into ", chunks, " equal chunks, so ", key,
                   " must be a multiple of ", chunks, ", such as ", (tokens / chunks + 1) * chunks);
  };
  check_length("context", stage.context);
  if (stage.dense_share > 0) check_length("dense_context", stage.dense_context);

  const Exchange exchange = exchange_of(recipe, stage).exchange;
  const int64_t heads = recipe.model.num_attention_heads;
  if (recipe.data.attention == data::Attention::kWithin) {
    check_argument(exchange == Exchange::kHeads, "parallel.exchange is '", to_string(exchange),
                   "' and data.attention is 'within'; it must be 'heads' or 'auto': by chunks of "
                   "sequences documents are not kept apart");
    check_argument(heads % ranks == 0, "parallel.context is ", ranks,
                   " and data.attention is 'within'; it must divide the ", heads,
                   " of model.num_attention_heads, since ranks then exchange heads");
  }
  check_argument(exchange != Exchange::kHeads || heads % ranks == 0,
                 "parallel.exchange is 'heads' and parallel.context is ", ranks,
                 ", which must divide the ", heads,
                 " of model.num_attention_heads; parallel.exchange = 'auto', 'gather' and 'ring' "
                 "take any number");
  if (exchange == Exchange::kHeads || computed_attention(stage) != nn::Mode::kLighthouse) return;
  const int64_t tokens = stage.context / chunks;
  distributed::chunk_config(stage.config, ranks);  // says which budgets can be divided
  const std::string why = why_not_by_chunks(recipe, stage);
  check_argument(why.empty(), "parallel.exchange is '", to_string(recipe.parallel.exchange),
                 "' and parallel.context is ", ranks, ": by ", to_string(exchange), " each of ",
                 chunks, " chunks of ", tokens, " tokens selects by itself, and ", why,
                 "; parallel.context or budget must be smaller, or context larger",
                 heads % ranks == 0 ? ", or parallel.exchange 'heads'" : "");
}

void check_ranks(const Recipe& recipe, int64_t ranks) {
  const int64_t context = recipe.parallel.context, data = ranks / context;
  check_argument(ranks % context == 0, "parallel.context is ", context,
                 ", the ranks that share a sequence; it must divide the ", ranks,
                 " ranks of the run: start a multiple of ", context,
                 " ranks (torchrun, srun or mpirun), or --set parallel.context=1");
  const std::string sharing =
      message(data, " ranks that share its sequences out",
              context == 1 ? "" : message(" (", ranks, " ranks / parallel.context ", context, ")"));
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    const StageRecipe& stage = recipe.stages[i];
    check_argument(stage.batch % data == 0, "stage.", i, ".batch is ", stage.batch,
                   "; it must be a multiple of the ", sharing);
    const int64_t own = stage.batch / data;
    check_argument(own % std::min(own, stage.sequences_at_once()) == 0, "stage.", i,
                   ".micro_batch is ", stage.micro_batch, "; it must divide the ", own,
                   " sequences that each has of the ", sharing);
  }
}

}  // namespace lighthouse::run
