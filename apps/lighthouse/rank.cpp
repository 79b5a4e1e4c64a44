#include "apps/lighthouse/rank.h"

#include <chrono>
#include <ostream>

#include "lighthouse/core/check.h"
#include "lighthouse/train/device.h"
#include "lighthouse/train/train.h"

namespace lighthouse::app {

std::ostream& of_first(const distributed::Launch& launch, std::ostream& stream) {
  static std::ostream nowhere(nullptr);
  return launch.rank == 0 ? stream : nowhere;
}

void Rank::close() {
  mesh.close(world);
  world.close();
}

distributed::World connect_world(distributed::Rendezvous& rendezvous, const std::string& device,
                                 const std::string& what, const run::ParallelRecipe& parallel) {
  train::find_device(device, what);  // one that is none is named as what it is
  const std::chrono::duration<double> timeout(parallel.timeout);
  return rendezvous.connect(
      {.device = distributed::device_of(rendezvous.launch(), at::Device(device)),
       .timeout = std::chrono::ceil<std::chrono::milliseconds>(timeout)});
}

Rank connect(distributed::Rendezvous& rendezvous, const std::string& device,
             const std::string& what, const run::Recipe& recipe, const train::Facts& more) {
  Rank rank;
  rank.world = connect_world(rendezvous, device, what, recipe.parallel);
  train::Facts facts = train::facts_of(recipe, {});
  facts.insert(facts.end(), more.begin(), more.end());
  train::check_agreement(rank.world, facts);
  rank.device = train::find_device(rank.world.gpu() ? rank.world.gpu()->str() : device, what);
  rank.mesh = distributed::Mesh::of(rank.world, recipe.parallel.context);
  return rank;
}

std::string ranks_of(const Rank& rank) {
  if (rank.world.size() == 1) return "";
  const int64_t sharing = rank.mesh.context.size();
  return message(rank.world.size(), " ranks, ",
                 sharing == 1 ? "" : message("of which ", sharing, " share each sequence, "));
}

}  // namespace lighthouse::app
