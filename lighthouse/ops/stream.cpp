#include "lighthouse/ops/stream.h"

#include <c10/cuda/CUDAStream.h>

namespace lighthouse::ops {

CurrentStream::CurrentStream(c10::Device device)
    : guard_(device), stream_(c10::cuda::getCurrentCUDAStream(device.index())) {}

}  // namespace lighthouse::ops
