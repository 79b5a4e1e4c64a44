#include "lighthouse/distributed/choose_exchange.h"

#include "lighthouse/core/check.h"

namespace lighthouse::distributed {

ChosenExchange choose_exchange(ExchangeChoice asked, const Sharing& sharing) {
  if (asked != ExchangeChoice::kAuto) {
    return {parse_word<Exchange>(to_string(asked), "exchange"), "it was asked for"};
  }
  const auto& [ranks, heads, groups, rows, has_pieces, by_chunks, has_documents] = sharing;
  if (has_documents) return {Exchange::kHeads, "it alone keeps documents apart"};
  const bool for_pieces = has_pieces && by_chunks;
  if (heads % ranks == 0 && !for_pieces) {
    return {Exchange::kHeads, message(ranks, " ranks divide the ", heads,
                                      " heads, and the result is that of one process")};
  }
  if (for_pieces && rows == 0) return {Exchange::kRing, "pieces alone exchange nothing"};
  const int64_t hidden_from = 2750 * ranks * groups / heads;
  const std::string no_heads =
      for_pieces ? "pieces then need no exchange, and "
                 : message(ranks, " ranks do not divide the ", heads, " heads, and ");
  if (rows >= hidden_from) {
    return {Exchange::kRing, message(no_heads, "attention to ", rows, " rows (", hidden_from,
                                     " or more) hides the transfers of a ring")};
  }
  return {Exchange::kGather, message(no_heads, "attention to ", rows, " rows (less than ",
                                     hidden_from, ") does not hide the transfers of a ring")};
}

}  // namespace lighthouse::distributed
