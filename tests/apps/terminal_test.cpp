#include "apps/lighthouse/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace lighthouse::app {
namespace {

/// Whether standard output is taken for a terminal while it is `fd`.
bool is_terminal_on(int fd, const char* term, const char* no_color) {
  ::setenv("TERM", term, 1);
  ::setenv("NO_COLOR", no_color, 1);
  const int before = ::dup(STDOUT_FILENO);
  ::dup2(fd, STDOUT_FILENO);
  const bool result = is_terminal();
  ::dup2(before, STDOUT_FILENO);
  ::close(before);
  return result;
}

TEST(Terminal, IsOneThatUnderstandsEscapes) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(terminal, 0);
  EXPECT_TRUE(is_terminal_on(terminal, "xterm", ""));
  EXPECT_FALSE(is_terminal_on(terminal, "dumb", ""));
  EXPECT_FALSE(is_terminal_on(terminal, "", ""));
  EXPECT_FALSE(is_terminal_on(terminal, "xterm", "1"));
  const int file = ::open("/dev/null", O_WRONLY);
  EXPECT_FALSE(is_terminal_on(file, "xterm", ""));
  ::close(file);
  ::close(terminal);
}

}  // namespace
}  // namespace lighthouse::app
