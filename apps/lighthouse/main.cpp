#include <c10/util/Exception.h>
#include <fcntl.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <limits>
#include <system_error>

#include "apps/lighthouse/verbs.h"

namespace {

int run(int argc, char** argv) {
  CLI::App app("Train, evaluate and benchmark language models with Lighthouse Attention.",
               "lighthouse");
  app.set_version_flag("--version", LIGHTHOUSE_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    std::string verb = "lighthouse";
    for (const CLI::App* at = failed; !at->get_subcommands().empty();) {
      at = at->get_subcommands().front();
      verb += ' ' + at->get_name();
    }
    return std::string("lighthouse: ") + error.what() + "\nSee " + verb + " --help.\n";
  });
  lighthouse::app::add_bench(app);
  lighthouse::app::add_compare(app);
  lighthouse::app::add_eval(app);
  lighthouse::app::add_export(app);
  lighthouse::app::add_info(app);
  lighthouse::app::add_passkey(app);
  lighthouse::app::add_plan(app);
  lighthouse::app::add_plot(app);
  lighthouse::app::add_sweep(app);
  lighthouse::app::add_train(app);
  lighthouse::app::add_verify(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : lighthouse::app::kUnusable;
  }
  return 0;
}

/// Where standard output was closed, the next file to be opened would get its number, and what is
/// printed. A descriptor that only fails takes the number instead.
void occupy_closed_descriptors() {
  for (const int fd : {0, 1, 2}) {
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
  }
}

/// The status to end with: not 0 where what was printed did not arrive, as on a full disk.
int check_printed(int status) {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  std::cerr << "lighthouse: cannot write to standard output";
  if (errno != 0) std::cerr << ": " << std::generic_category().message(errno);
  std::cerr << '\n';
  return status == 0 ? lighthouse::app::kUnusable : status;
}

}  // namespace

int main(int argc, char** argv) {
  occupy_closed_descriptors();
  // Memory that is given back between two steps costs its page faults again: glibc's defaults make
  // that several times what our own stages take.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  // cuBLAS gives the same bits from run to run with workspaces of its own, which it must be told of
  // before it is first used.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  try {
    return check_printed(run(argc, argv));
  } catch (const c10::Error& error) {
    std::cerr << "lighthouse: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "lighthouse: " << error.what() << '\n';
  }
  return lighthouse::app::kUnusable;
}
