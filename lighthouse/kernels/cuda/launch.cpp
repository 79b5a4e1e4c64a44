#include "lighthouse/kernels/cuda/launch.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "lighthouse/core/check.h"

namespace lighthouse::cuda {
namespace {

nvtxDomainHandle_t nvtx_domain() {
  static const nvtxDomainHandle_t domain = nvtxDomainCreateA("lighthouse");
  return domain;
}

}  // namespace

StageRange::StageRange(const char* stage) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = stage;
  nvtxDomainRangePushEx(nvtx_domain(), &attributes);
}

StageRange::~StageRange() { nvtxDomainRangePop(nvtx_domain()); }

unsigned grid_of(int64_t blocks) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check_argument(blocks <= kMost, "this shape takes ", blocks,
                 " blocks of threads; a CUDA grid has at most ", kMost);
  return static_cast<unsigned>(blocks);
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  const std::string reported =
      message("lighthouse: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error),
              ", at the launch of the kernel ", kernel, " or before it");
  int device = 0;
  cudaDeviceProp card{};
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaGetDeviceProperties(&card, device) == cudaSuccess;
  const bool wrong_architecture = error == cudaErrorNoKernelImageForDevice ||
                                  error == cudaErrorInvalidDeviceFunction ||
                                  error == cudaErrorUnsupportedPtxVersion;
  if (!known || !wrong_architecture) throw std::runtime_error(reported);
  throw std::runtime_error(message(
      reported, ": ", card.name, " has compute capability ", card.major, ".", card.minor,
      ", and this library holds code for the architectures " LIGHTHOUSE_CUDA_ARCHITECTURES
      "; build it with -DCMAKE_CUDA_ARCHITECTURES=",
      card.major, card.minor, ", or, where it has PTX for the card, bring the driver up to CUDA ",
      CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10));
}

RowGrid::RowGrid(int64_t batch, int64_t all_columns, int64_t rows_of_column, int64_t packs_of_row,
                 int64_t rows_of_block)
    : packs(static_cast<unsigned>(packs_of_row)),
      columns(static_cast<unsigned>(all_columns)),
      rows(static_cast<unsigned>(rows_of_block)) {
  threads.x = static_cast<unsigned>(std::min<int64_t>(packs, kBlockThreads));
  threads.y = kBlockThreads / threads.x;
  chunks = static_cast<unsigned>(ceil_div(rows_of_column, rows_of_block));
  blocks = grid_of(batch * columns * chunks);
}

}  // namespace lighthouse::cuda
