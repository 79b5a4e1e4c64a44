#pragma once

#include <vector>

#ifdef LIGHTHOUSE_TEST_CUDA
#include <cuda_runtime_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#endif

namespace lighthouse::testing {

#ifdef LIGHTHOUSE_TEST_CUDA

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// Values where the kernels under test reach them: here, on the device.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t size, T fill) : Buffer(std::vector<T>(size, fill)) {}
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    if (size_ == 0) return;
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, size_ * sizeof(T)));
    memory_.reset(static_cast<T*>(memory), [](T* data) { cudaFree(data); });
    check_cuda(cudaMemcpy(memory, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }

  T* data() const { return memory_.get(); }

  /// What is there when all kernels launched so far have run.
  std::vector<T> values() const {
    std::vector<T> values(size_);
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t size_ = 0;
  std::shared_ptr<T> memory_;
};

#else

/// Values where the kernels under test reach them: here, in plain memory.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t size, T fill) : values_(size, fill) {}
  explicit Buffer(std::vector<T> values) : values_(std::move(values)) {}

  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  const std::vector<T>& values() const { return values_; }

 private:
  std::vector<T> values_;
};

#endif

}  // namespace lighthouse::testing
