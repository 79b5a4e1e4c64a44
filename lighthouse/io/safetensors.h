#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace lighthouse::io {

/// The contents of a safetensors file: named tensors, and text to go with them.
struct SafeTensors {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Reads a file whose tensors are of the types F64, F32, BF16, F16, I64, I32, U8 and BOOL, onto the
/// CPU. Every rule of the format is checked before a tensor is made: throws std::runtime_error
/// naming the file, the tensor, what was found and what must be there.
SafeTensors read_safetensors(const std::filesystem::path& path);

/// Writes tensors of those types, from any device and of any strides, atomically (io/file.h). The
/// same contents give the same bytes; every tensor begins at a multiple of its element's size.
/// Throws std::runtime_error naming the file and the tensor.
void write_safetensors(const std::filesystem::path& path, const SafeTensors& contents);

}  // namespace lighthouse::io
