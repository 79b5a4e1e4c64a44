#pragma once

struct CUstream_st;

namespace lighthouse::cuda {

/// A cudaStream_t. CUDA's own headers are needed where kernels are launched, not where they are
/// called.
using Stream = CUstream_st*;

}  // namespace lighthouse::cuda
