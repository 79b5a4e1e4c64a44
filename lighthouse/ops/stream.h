#pragma once

#include <c10/core/Device.h>
#include <c10/core/DeviceGuard.h>

#include "lighthouse/kernels/stream.h"

namespace lighthouse::ops {

/// Makes a CUDA device the current one while it lives, and knows its current stream.
class CurrentStream {
 public:
  explicit CurrentStream(c10::Device device);
  cuda::Stream get() const { return stream_; }

 private:
  c10::DeviceGuard guard_;
  cuda::Stream stream_;
};

}  // namespace lighthouse::ops
