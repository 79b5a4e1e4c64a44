#pragma once

#include <ATen/Context.h>
#include <c10/core/Device.h>

#include <cstdlib>

namespace lighthouse::testing {

/// Whether stock attention on a GPU may take kernels of its own, or plain products alone.
inline void use_attention_kernels(bool on) {
  at::globalContext().setSDPUseFlash(on);
  at::globalContext().setSDPUseMemEfficient(on);
  at::globalContext().setSDPUseCuDNN(on);
}

/// The device that operators are tested on: that of LIGHTHOUSE_TEST_DEVICE, or the CPU.
///
/// On a GPU stock attention is then made of plain products: the backward of its kernels differs
/// from run to run, and these tests compare bits.
inline at::Device device() {
  static const at::Device chosen = [] {
    const char* name = std::getenv("LIGHTHOUSE_TEST_DEVICE");
    const at::Device device(name != nullptr ? name : "cpu");
    if (device.is_cuda()) use_attention_kernels(false);
    return device;
  }();
  return chosen;
}

/// While it lives, stock attention takes its kernels all the same.
class AttentionKernels {
 public:
  AttentionKernels() {
    device();  // chosen later, it would take the kernels away again
    use_attention_kernels(true);
  }
  ~AttentionKernels() { use_attention_kernels(device().is_cpu()); }
  AttentionKernels(const AttentionKernels&) = delete;
  AttentionKernels& operator=(const AttentionKernels&) = delete;
};

}  // namespace lighthouse::testing
