#include <gtest/gtest.h>
#include <nvtx3/nvToolsExt.h>

#include <string>
#include <vector>

#include "lighthouse/kernels/gather.h"
#include "lighthouse/kernels/merge.h"
#include "lighthouse/kernels/scatter.h"
#include "lighthouse/kernels/score.h"
#include "lighthouse/kernels/select.h"

/// A listener such as a profiler links into a program: it notes the ranges that begin and end.
namespace {

std::vector<std::string>& noted() {
  static std::vector<std::string> names;
  return names;
}
std::string& domain() {
  static std::string name;
  return name;
}

int push(nvtxDomainHandle_t /*in*/, const nvtxEventAttributes_t* attributes) {
  noted().emplace_back(attributes->message.ascii);
  return 0;
}
int pop(nvtxDomainHandle_t /*in*/) {
  noted().emplace_back("end");
  return 0;
}
nvtxDomainHandle_t create(const char* name) {
  domain() = name;
  return nullptr;
}

template <class F>
void replace(NvtxFunctionTable table, int callback, F* function) {
  *table[callback] = reinterpret_cast<NvtxFunctionPointer>(function);
}

int listen(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  replace(table, NVTX_CBID_CORE2_DomainRangePushEx, push);
  replace(table, NVTX_CBID_CORE2_DomainRangePop, pop);
  replace(table, NVTX_CBID_CORE2_DomainCreateA, create);
  return 1;
}

// NVTX asks this variable once, at the first range of the program.
[[maybe_unused]] const bool kListens = (InitializeInjectionNvtx2_fnptr = listen, true);

}  // namespace

namespace lighthouse::testing {
namespace {

TEST(StageRange, ShowsEveryStageToProfilers) {
  // A batch of none is a stage without launches.
  Config config;
  config.levels = 2;
  config.budget = config.tile_budget = 4;
  const Geometry g(64, config);
  const Shape none{0, 1, 1, 8};
  noted().clear();
  cuda::score(Score<float>{g, none, {}, {}, {}, nullptr, nullptr, nullptr}, nullptr, nullptr);
  cuda::pool_scores({g, none, nullptr, nullptr, nullptr, nullptr}, nullptr);
  cuda::select({g, none, SelectionRule::kCausal, nullptr, nullptr, nullptr, nullptr}, nullptr,
               nullptr);
  cuda::gather(Gather<float>{g, none, {}, {}, {}, nullptr, nullptr, {}, {}, {}}, nullptr);
  cuda::gather_backward(GatherBackward<float>{g, none, {}, {}, {}, nullptr, {}, {}, {}}, nullptr);
  cuda::scatter(Scatter<float>{g, none, {}, nullptr, {}}, nullptr);
  cuda::scatter_backward(ScatterBackward<float>{g, none, {}, nullptr, {}}, nullptr);
  cuda::merge(Merge<float>{g, none, {}, {}, {}, {}, {}, nullptr, {}, nullptr}, nullptr);
  cuda::merge_backward(
      MergeBackward<float>{g, none, {}, {}, {}, nullptr, {}, nullptr, nullptr, {}, {}}, nullptr);
  EXPECT_EQ(domain(), "lighthouse");
  std::vector<std::string> expected;
  for (const char* stage : {"score", "pool_scores", "select", "gather", "gather_backward",
                            "scatter", "scatter_backward", "merge", "merge_backward"}) {
    expected.insert(expected.end(), {stage, "end"});
  }
  EXPECT_EQ(noted(), expected);
}

}  // namespace
}  // namespace lighthouse::testing
