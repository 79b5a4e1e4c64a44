#include "apps/lighthouse/terminal.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace lighthouse::app {

bool is_terminal() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
  };
  const std::string kind = variable("TERM");
  return isatty(STDOUT_FILENO) == 1 && !kind.empty() && kind != "dumb" &&
         variable("NO_COLOR").empty();
}

}  // namespace lighthouse::app
