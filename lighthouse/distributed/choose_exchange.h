#pragma once

#include <cstdint>
#include <string>

#include "lighthouse/distributed/attend_across.h"

namespace lighthouse::distributed {

/// The exchange that a user asks for.
enum class ExchangeChoice {
  kAuto,  ///< as choose_exchange decides
  kHeads,
  kGather,
  kRing,
};

}  // namespace lighthouse::distributed

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::distributed::ExchangeChoice>{
    "auto", "heads", "gather", "ring"};

namespace lighthouse::distributed {

struct ChosenExchange {
  Exchange exchange;
  std::string because;  ///< as the end of a sentence
};

/// What ranks that share a sequence do with it.
struct Sharing {
  int64_t ranks;            ///< W
  int64_t heads, groups;    ///< H of the queries, G of keys and values
  int64_t rows;             ///< of the whole sequence that attention attends to; 0 for pieces alone
  bool has_pieces = false;  ///< attention inside local pieces, alone or beside Lighthouse
  bool by_chunks = true;    ///< 2 W chunks can select, and attend inside pieces, by themselves
  bool has_documents = false;  ///< that attention keeps apart
};

/// By auto: heads where there are documents to keep apart, which no other exchange can; else heads
/// where the ranks divide the query heads, unless there are pieces. Those need no exchange by ring
/// or gather, which exchange the gathered rows alone, and heads exchange all tokens
/// (docs/results-h200.md has the speed of each). Else the ring, where attention takes longer than
/// its transfers, which is from 2750 W G/H rows on; else gather. (That bound is computed for keys
/// of 128 dimensions in bfloat16 and links of 400 GB/s.)
ChosenExchange choose_exchange(ExchangeChoice asked, const Sharing& sharing);

}  // namespace lighthouse::distributed
