#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "lighthouse/run/checkpoint.h"
#include "lighthouse/run/metrics.h"
#include "lighthouse/run/run_folder.h"
#include "lighthouse/train/train.h"
#include "tests/run/support.h"
#include "tests/support/device.h"

namespace lighthouse::train {

/// Small runs in a folder of their own.
class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    // Models this small only lose by a second thread.
    at::set_num_threads(1);
    run::write_text(folder / "text");
    testing::device();
  }

  run::Recipe recipe(const std::string& stages, const std::string& out = "run") {
    std::ofstream(folder / "recipe.toml") << run::recipe_head(folder / "text") << stages;
    return read_recipe(out);
  }

  /// The recipe within documents: files of 1 to 60 words.
  run::Recipe within_documents(const std::string& stages, const std::string& out = "run") {
    std::filesystem::create_directory(folder / "documents");
    for (int i = 0; i < 200; ++i) {
      std::ofstream file(folder / ("documents/" + std::to_string(i)));
      for (int word = 0; word < 1 + i * 7 % 60; ++word) file << "word " << i * word % 97 << ' ';
    }
    recipe(stages, out);
    return read_recipe(out, {"data.path=" + (folder / "documents").string(),
                             "data.attention=within", "data.held_out_share=0.2"});
  }

  /// Trains, and returns what was said.
  std::string train(const run::Recipe& recipe, const Start& start = {},
                    const Clock& clock = steady_seconds) {
    std::ostringstream out;
    EXPECT_EQ(train::train(recipe, start, out, false, clock), 0);
    return out.str();
  }

  run::MetricsHistory metrics(const std::string& out = "run") const {
    return run::read_metrics(run::RunFolder(folder / out).metrics());
  }

  std::filesystem::path checkpoint(int64_t step, const std::string& out = "run") const {
    const auto all = run::Checkpoints(run::RunFolder(folder / out).checkpoints()).list();
    for (const std::filesystem::path& path : all) {
      if (run::read_checkpoint(path).step == step) return path;
    }
    return {};
  }

  const testing::Folder folder;

 private:
  run::Recipe read_recipe(const std::string& out, const std::vector<std::string>& set = {}) {
    run::Recipe read = run::Recipe::read(folder / "recipe.toml", set);
    read.run.out = (folder / out).string();
    read.run.device = testing::device().str();
    read.run.deterministic = testing::device().is_cuda();
    return read;
  }
};

inline bool same_tensors(const std::filesystem::path& a, const std::filesystem::path& b) {
  return io::read_file(a / "model.safetensors") == io::read_file(b / "model.safetensors") &&
         io::read_file(a / "optimizer.safetensors") == io::read_file(b / "optimizer.safetensors");
}

}  // namespace lighthouse::train
