#include "apps/lighthouse/output_file.h"

#include <unistd.h>

#include <filesystem>

#include "lighthouse/core/check.h"

namespace lighthouse::app {

namespace fs = std::filesystem;

CLI::Validator output_file() {
  const auto check = [](const std::string& name) -> std::string {
    if (name.empty()) return "is ''; it must be a file";
    std::error_code ignored;  // what cannot be looked at is no folder to write in
    const fs::path folder = fs::absolute(name).parent_path();
    if (fs::is_directory(name, ignored)) {
      return message("is '", name, "', a folder; it must be a file");
    }
    if (!fs::is_directory(folder, ignored) || access(folder.c_str(), W_OK) != 0) {
      return message("is '", name, "', which cannot be written: '", folder.string(),
                     "' is not a folder that can be written in");
    }
    return "";
  };
  return {check, "FILE"};
}

}  // namespace lighthouse::app
