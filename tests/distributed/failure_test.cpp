#include "lighthouse/distributed/failure.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <new>
#include <thread>

#include "lighthouse/core/check.h"
#include "lighthouse/distributed/world.h"

namespace lighthouse::testing {
namespace {

using distributed::Failures;
using distributed::PeerError;
using std::chrono_literals::operator""ms;
using Errors = std::vector<std::exception_ptr>;

std::exception_ptr own(const std::string& what) {
  return std::make_exception_ptr(std::runtime_error(what));
}
std::exception_ptr of_peers() { return std::make_exception_ptr(PeerError("it broke")); }

/// What each rank prints that ends by its error; a rank without one was killed, and says nothing.
std::vector<std::string> words(const Errors& errors) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto size = static_cast<int64_t>(errors.size());
  std::vector<std::string> said(errors.size());
  std::vector<Failures> ranks;
  for (int64_t rank = 0; rank < size; ++rank) {
    ranks.emplace_back(store, distributed::Launch{.rank = rank, .size = size, .local_rank = rank},
                       1000ms);
    ranks.back().announce(message("host", rank / 2));
  }
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    if (errors[rank] == nullptr) continue;
    threads.emplace_back([&, rank] { said[rank] = ranks[rank].last_word(errors[rank]); });
  }
  for (std::thread& thread : threads) thread.join();
  return said;
}

using Words = std::vector<std::string>;

TEST(Failures, OfOneRankIsItsOwnToSayAndRankZeroPointsToIt) {
  EXPECT_EQ(words({of_peers(), of_peers(), of_peers(), own("the disk is full")}),
            (Words{"rank 0 of 4 on host0 ends because rank 3 of 4 on host1 failed: "
                   "the disk is full",
                   "", "", "rank 3 of 4 on host1: the disk is full"}));
  EXPECT_EQ(words({own("the disk is full"), of_peers(), of_peers()}),
            (Words{"rank 0 of 3 on host0: the disk is full", "", ""}));
}

TEST(Failures, OfMemoryIsNamed) {
  EXPECT_EQ(words({of_peers(), std::make_exception_ptr(std::bad_alloc())})[1],
            "rank 1 of 2 on host0: out of memory");
}

TEST(Failures, OfAllRanksAlikeIsSaidOnce) {
  const auto error = own("stage.0.steps is 0");
  EXPECT_EQ(words({error, error, error}),
            (Words{"rank 0 of 3 on host0: stage.0.steps is 0", "", ""}));
  EXPECT_EQ(words({own("no file a"), own("no file b")}),
            (Words{"rank 0 of 2 on host0: no file a", "rank 1 of 2 on host0: no file b"}));
}

TEST(Failures, OfRanksThatCannotSpeakAreSaidForThem) {
  EXPECT_EQ(words({of_peers(), of_peers(), nullptr, nullptr}),
            (Words{"no sign of life from rank 2 of 4 on host1, rank 3 of 4 on host1: killed, "
                   "hanging, or cut off from the others (it broke)",
                   "", "", ""}));
  // Where rank 0 is gone one of the others speaks, whichever comes first.
  const Words without_first = words({nullptr, of_peers(), of_peers()});
  EXPECT_EQ(without_first[1] + without_first[2],
            "no sign of life from rank 0 of 3 on host0: killed, hanging, or cut off from the "
            "others (it broke)");
}

TEST(Failures, OfAConnectionBetweenRanksThatAreAllThereIsToldAsItIs) {
  EXPECT_EQ(words({of_peers(), of_peers()}), (Words{"rank 0 of 2 on host0: it broke", ""}));
}

TEST(Failures, OfAStoreThatIsGoneLeaveOneVoiceAHost) {
  const auto word = [](int64_t rank, int64_t local_rank, const std::exception_ptr& error) {
    const distributed::Launch launch{
        .rank = rank, .size = 8, .local_rank = local_rank, .address = "node0", .port = 29500};
    return Failures(nullptr, launch, 100ms).last_word(error);
  };
  const std::string gone =
      "no sign of life from rank 0 at node0:29500: killed, hanging, or cut off from rank ";
  EXPECT_EQ(word(1, 1, of_peers()), gone + "1 (it broke)");
  EXPECT_EQ(word(2, 2, of_peers()), "");
  EXPECT_EQ(word(4, 0, of_peers()), gone + "4 (it broke)");
  EXPECT_EQ(word(5, 1, of_peers()), "");
  EXPECT_EQ(word(5, 1, own("a bug")), "rank 5 of 8: a bug");
}

}  // namespace
}  // namespace lighthouse::testing
