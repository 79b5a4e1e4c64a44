#pragma once

#include <filesystem>
#include <iosfwd>
#include <string>
#include <vector>

#include "lighthouse/io/safetensors.h"

namespace lighthouse::app {

/// How one tensor of ours compares with that of a file.
struct Comparison {
  std::string tensor;
  double error;        ///< max|ours - theirs| / max|theirs|; for index, the share that differs
  bool within;         ///< of the tolerance; never where the error is NaN
  std::string remark;  ///< where it is not within: what differs first, or what the tolerance is
};

/// Computes Lighthouse Attention on `device` from q, k and v (B, N, H, D) and grad_out (B, H, N, D)
/// of a file, and compares those that are there of index (B, H, S; exactly and in order), out (B,
/// H, N, D), grad_q, grad_k and grad_v (B, N, H, D). Its metadata gives B, H, N, D, num_levels,
/// pooling_factor, top_k and tile_budget. With grouped queries k and v have their own H.
/// Throws std::runtime_error where the contents are not of that form.
std::vector<Comparison> verify(const io::SafeTensors& file, double tolerance, at::Device device);

/// Verifies files, a line for each tensor on `out`, and on `err` a line for each file that is not
/// of that form. Returns the exit status: 0, kFailed, or kUnusable, which comes before kFailed.
int verify_files(const std::vector<std::filesystem::path>& files, double tolerance,
                 at::Device device, std::ostream& out, std::ostream& err);

}  // namespace lighthouse::app
