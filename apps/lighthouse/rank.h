#pragma once

#include <iosfwd>
#include <string>

#include "lighthouse/distributed/connect.h"
#include "lighthouse/run/recipe.h"
#include "lighthouse/train/agreement.h"

namespace lighthouse::app {

/// The stream on the first rank; elsewhere one that goes nowhere.
std::ostream& of_first(const distributed::Launch& launch, std::ostream& stream);

/// This process among the ranks of a verb.
struct Rank {
  at::Device device = at::kCPU;
  distributed::World world;
  distributed::Mesh mesh;

  /// Ends the groups in order; every rank calls it where nothing failed.
  void close();
};

/// Meets the other ranks, on this one's GPU where the device is one.
/// @param device,what as train::find_device takes them
distributed::World connect_world(distributed::Rendezvous& rendezvous, const std::string& device,
                                 const std::string& what, const run::ParallelRecipe& parallel);

/// The same for a recipe, in which all ranks must agree, with who shares sequences.
/// @param more what they must agree in besides
/// @throws std::invalid_argument, besides what Rendezvous::connect throws, where they do not, or
///         parallel.context does not divide them
Rank connect(distributed::Rendezvous& rendezvous, const std::string& device,
             const std::string& what, const run::Recipe& recipe, const train::Facts& more = {});

/// "4 ranks, of which 2 share each sequence, "; empty for one.
std::string ranks_of(const Rank& rank);

}  // namespace lighthouse::app
