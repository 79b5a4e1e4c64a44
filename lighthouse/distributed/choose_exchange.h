#pragma once

#include <cstdint>
#include <string>

#include "lighthouse/distributed/attend_across.h"

namespace lighthouse::distributed {

/// The exchange that a user asks for.
enum class ExchangeChoice {
  kAuto,  ///< the fastest that these ranks can do
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

/// By auto: heads where the ranks divide the query heads; else the ring, where attention takes
/// longer than its transfers, which is from 2750 W G/H rows on; else gather. (That bound is
/// computed for keys of 128 dimensions in bfloat16 and links of 400 GB/s.)
/// @param ranks W, that share a sequence
/// @param heads,groups H of the queries, G of keys and values
/// @param rows of the whole sequence that attention attends to
ChosenExchange choose_exchange(ExchangeChoice asked, int64_t ranks, int64_t heads, int64_t groups,
                               int64_t rows);

}  // namespace lighthouse::distributed
