#include "lighthouse/distributed/choose_exchange.h"

#include "lighthouse/core/check.h"

namespace lighthouse::distributed {

ChosenExchange choose_exchange(ExchangeChoice asked, int64_t ranks, int64_t heads, int64_t groups,
                               int64_t rows) {
  if (asked != ExchangeChoice::kAuto) {
    return {parse_word<Exchange>(to_string(asked), "exchange"), "it was asked for"};
  }
  if (heads % ranks == 0) {
    return {Exchange::kHeads, message(ranks, " ranks divide the ", heads,
                                      " heads, and the result is that of one process")};
  }
  const int64_t hidden_from = 2750 * ranks * groups / heads;
  const std::string no_heads = message(ranks, " ranks do not divide the ", heads, " heads, and ");
  if (rows >= hidden_from) {
    return {Exchange::kRing, message(no_heads, "attention to ", rows, " rows (", hidden_from,
                                     " or more) hides the transfers of a ring")};
  }
  return {Exchange::kGather, message(no_heads, "attention to ", rows, " rows (less than ",
                                     hidden_from, ") does not hide the transfers of a ring")};
}

}  // namespace lighthouse::distributed
