#include "lighthouse/kernels/cuda/launch.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "lighthouse/core/check.h"

namespace lighthouse::cuda {

unsigned grid_of(int64_t blocks) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check_argument(blocks <= kMost, "this shape takes ", blocks,
                 " blocks of threads; a CUDA grid has at most ", kMost);
  return static_cast<unsigned>(blocks);
}

void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  int device = 0;
  cudaDeviceProp card{};
  cudaGetDevice(&device);
  cudaGetDeviceProperties(&card, device);
  const std::string what = message("lighthouse: the kernel ", kernel, " could not be launched on ",
                                   card.name, " (compute capability ", card.major, ".", card.minor,
                                   "): ", cudaGetErrorString(error));
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    throw std::runtime_error(
        message(what,
                ". This library holds code for the architectures " LIGHTHOUSE_CUDA_ARCHITECTURES
                "; build it with -DCMAKE_CUDA_ARCHITECTURES=",
                card.major, card.minor));
  }
  throw std::runtime_error(what);
}

RowGrid::RowGrid(int64_t batch, int64_t all_columns, int64_t rows, int64_t packs_of_row,
                 int64_t rows_of_block)
    : packs(static_cast<unsigned>(packs_of_row)), columns(static_cast<unsigned>(all_columns)) {
  threads.x = static_cast<unsigned>(std::min<int64_t>(packs, kBlockThreads));
  threads.y = kBlockThreads / threads.x;
  chunks = static_cast<unsigned>(ceil_div(rows, rows_of_block));
  blocks = grid_of(batch * columns * chunks);
}

}  // namespace lighthouse::cuda
