#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace lighthouse::io {

/// Reads tensors that lie in any number of safetensors files, each tensor in one file or, cut by
/// its rows (the first dimension), in several. The metadata "DCP_SHARDING_INFO" of a file gives the
/// row at which its part of a tensor begins, as JSON: {"NAME": {"saved_offsets": [ROW, 0, ...]}}.
/// This is the form of torch.distributed.checkpoint, whose HuggingFaceStorageReader reads the same
/// files. A tensor without it begins at row 0.
/// @param shapes the whole shape of every tensor
/// @throws std::runtime_error naming the file and the tensor where a row is missing or comes twice,
///         a part has other columns or another type, or a tensor is not in `shapes`
std::map<std::string, at::Tensor> read_sharded_tensors(
    const std::vector<std::filesystem::path>& files,
    const std::map<std::string, std::vector<int64_t>>& shapes);

}  // namespace lighthouse::io
