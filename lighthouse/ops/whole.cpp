#include <torch/library.h>

#include "lighthouse/core/geometry.h"
#include "lighthouse/ops/attention.h"

/// lighthouse/ops/attention.h as operators, with the settings one by one. They are made of the
/// stages' operators, and so are their gradients and what compilers trace.
namespace lighthouse::ops {
namespace {

using at::Tensor;

Config make_config(int64_t levels, int64_t pooling_factor, int64_t budget, int64_t tile_budget,
                   std::string_view scorer, int64_t dilation, std::string_view selection,
                   std::optional<double> scale) {
  try {
    const Config config{levels,
                        pooling_factor,
                        budget,
                        tile_budget,
                        parse_scorer(scorer),
                        dilation,
                        parse_selection_rule(selection),
                        scale};
    config.validate();
    return config;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

void check_both(const std::optional<Tensor>& a, const std::optional<Tensor>& b, const char* names) {
  TORCH_CHECK_VALUE(a.has_value() == b.has_value(), names,
                    " belong together: one of them is given, the other is not");
}

#define LIGHTHOUSE_SETTINGS                                                    \
  int64_t levels, int64_t pooling_factor, int64_t budget, int64_t tile_budget, \
      std::string_view scorer, int64_t dilation, std::string_view selection,   \
      std::optional<double> scale
#define LIGHTHOUSE_CONFIG \
  make_config(levels, pooling_factor, budget, tile_budget, scorer, dilation, selection, scale)

Tensor attention_of(const Tensor& q, const Tensor& k, const Tensor& v, LIGHTHOUSE_SETTINGS,
                    const std::optional<Tensor>& rows, const std::optional<Tensor>& slots) {
  check_both(rows, slots, "rows and slots");
  std::optional<Selection> given;
  if (rows) given = Selection{*rows, *slots};
  return attention(q, k, v, LIGHTHOUSE_CONFIG, given);
}

std::tuple<Tensor, Tensor> select_rows(const Tensor& q, const Tensor& k, const Tensor& v,
                                       LIGHTHOUSE_SETTINGS, const std::optional<Tensor>& scores_q,
                                       const std::optional<Tensor>& scores_k) {
  check_both(scores_q, scores_k, "scores_q and scores_k");
  std::optional<TokenScores> scores;
  if (scores_q) scores = TokenScores{*scores_q, *scores_k};
  const Selection result = select(q, k, v, LIGHTHOUSE_CONFIG, scores);
  return {result.rows, result.slots};
}

int64_t gathered_rows_of(int64_t tokens, LIGHTHOUSE_SETTINGS) {
  try {
    return gathered_rows(tokens, LIGHTHOUSE_CONFIG);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::string dense_because_of(int64_t tokens, LIGHTHOUSE_SETTINGS) {
  try {
    return dense_because(tokens, LIGHTHOUSE_CONFIG);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

void check_config(LIGHTHOUSE_SETTINGS) { LIGHTHOUSE_CONFIG; }

}  // namespace

TORCH_LIBRARY_IMPL(lighthouse, CompositeImplicitAutograd, m) {
  m.impl("attention", attention_of);
  m.impl("select_rows", select_rows);
}
TORCH_LIBRARY_IMPL(lighthouse, CatchAll, m) {
  m.impl("gathered_rows", gathered_rows_of);
  m.impl("dense_because", dense_because_of);
  m.impl("check_config", check_config);
}

}  // namespace lighthouse::ops
