#include "apps/lighthouse/verbs/bench.h"

#include "apps/lighthouse/verbs.h"

namespace lighthouse::app {

void add_bench(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "Time attention, or whole training steps, dense and Lighthouse");
  bench->require_subcommand(1);
  add_bench_attention(*bench);
  add_bench_train(*bench);
}

}  // namespace lighthouse::app
