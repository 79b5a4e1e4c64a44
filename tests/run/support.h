#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "lighthouse/io/file.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::run {

using testing::Folder;

/// Writes a text with some order in it.
inline void write_text(const std::filesystem::path& path, unsigned seed = 1) {
  std::ofstream out(path);
  for (unsigned i = 0; i < 4000; ++i) {
    seed = seed * 1664525 + 1013904223;
    out << "word " << (seed >> 24) << (i % 7 == 0 ? ".\n" : " ");
  }
}

/// A recipe of a model as small as they get, on the text at `text`, without stages.
inline std::string recipe_head(const std::filesystem::path& text) {
  return "[model]\nhidden_size = 16\nintermediate_size = 32\nnum_hidden_layers = 2\n"
         "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 8\n"
         "[data]\npath = '" +
         text.string() +
         "'\n"
         "[optimizer]\nlr = 1e-2\nwarmup_steps = 4\n"
         "[run]\nseed = 3\neval_sequences = 1\neval_every_steps = 5\ncheckpoint_every_steps = 1\n";
}

inline constexpr const char* kLighthouseStage =
    "[[stage]]\nname = 'lighthouse'\nsteps = 10\ncontext = 256\nbatch = 2\nmicro_batch = 1\n"
    "attention = 'lighthouse'\nlevels = 3\npooling_factor = 4\nbudget = 8\ntile_budget = 4\n"
    "dense_layers = [0]\ndense_share = 0.25\ndense_context = 64\n";

inline std::string dense_stage(const std::string& name, int steps) {
  return "[[stage]]\nname = '" + name + "'\nsteps = " + std::to_string(steps) +
         "\ncontext = 128\nbatch = 2\n";
}

inline std::string timed_stage(const std::string& name, double seconds) {
  return "[[stage]]\nname = '" + name + "'\nseconds = " + std::to_string(seconds) +
         "\ncontext = 128\nbatch = 2\n";
}

}  // namespace lighthouse::run
