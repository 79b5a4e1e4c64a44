#include "apps/lighthouse/output_file.h"

#include <filesystem>
#include <iostream>
#include <stdexcept>

namespace lighthouse::app {

CLI::Validator output_file() {
  const auto check = [](const std::string& name) -> std::string {
    try {
      const io::OutputFile file(name);
      return "";
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  };
  return {check, "FILE"};
}

Output::Output(const std::string& path) {
  if (path.empty()) return;
  file_.emplace(path);
  if (file_->is_standard_output()) standard_output_ = std::cout.rdbuf(std::cerr.rdbuf());
}

std::string Output::name() const {
  return file_->is_standard_output() ? "standard output"
                                     : std::filesystem::absolute(file_->path()).string();
}

Output::~Output() {
  if (standard_output_ != nullptr) std::cout.rdbuf(standard_output_);
}

}  // namespace lighthouse::app
