#include "apps/lighthouse/picture.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "lighthouse/io/file.h"
#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::app {
namespace {

namespace fs = std::filesystem;
using testing::Folder;
using testing::throws;

/// Puts a script in the place of Python while it exists.
class StubPython {
 public:
  explicit StubPython(const std::string& script) {
    if (const char* before = std::getenv("LIGHTHOUSE_PYTHON")) before_ = before;
    const fs::path python = folder / "python";
    std::ofstream(python) << "#!/bin/sh\n" << script;
    fs::permissions(python, fs::perms::owner_all);
    ::setenv("LIGHTHOUSE_PYTHON", python.c_str(), 1);
  }
  ~StubPython() {
    if (before_) {
      ::setenv("LIGHTHOUSE_PYTHON", before_->c_str(), 1);
    } else {
      ::unsetenv("LIGHTHOUSE_PYTHON");
    }
  }
  StubPython(const StubPython&) = delete;
  StubPython& operator=(const StubPython&) = delete;

  const Folder folder;

 private:
  std::optional<std::string> before_;
};

TEST(Picture, IsWhatPythonWrites) {
  const StubPython python(R"(printf '%s|' "$@"; cat)");
  const std::string large(1 << 20, 'x');  // more than a pipe holds
  const std::string drawn = draw("a.PNG", {"--log-x", "-"}, large);
  const size_t end = drawn.find('|');
  EXPECT_TRUE(fs::exists(drawn.substr(0, end))) << drawn.substr(0, end);
  EXPECT_EQ(fs::path(drawn.substr(0, end)).filename(), "plot.py");
  EXPECT_TRUE(drawn.substr(end) == "|--out|-|--format|png|--log-x|-|" + large)
      << drawn.substr(end, 80);
  EXPECT_NE(draw("/dev/stdout", {"run"}).find("|--format|svg|run|"), std::string::npos);
}

TEST(Picture, IsNotThereWherePythonFails) {
  const auto drawing = [] { draw("a.png", {"run"}); };
  {
    const StubPython python("printf 'half a picture'; echo why >&2; exit 1");
    ::testing::internal::CaptureStderr();
    EXPECT_THROW(drawing(), CLI::RuntimeError);
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "why\n");
  }
  const StubPython python("kill -9 $$");
  EXPECT_TRUE(throws(drawing, {"signal 9 ended '" + (python.folder / "python").string()}));
  ::setenv("LIGHTHOUSE_PYTHON", "/no/python", 1);
  EXPECT_TRUE(throws(drawing, {"cannot run '/no/python': No such file or directory",
                               "a Python that has matplotlib, which LIGHTHOUSE_PYTHON can name"}));
}

TEST(Picture, HasAFormatThatCanBeDrawn) {
  const Folder folder;
  const CLI::Validator check = picture_file();
  const auto error = [&](const std::string& name) {
    std::string file = (folder / name).string();
    return check(file);
  };
  for (const char* name : {"a.png", "a.SVG", "a.b.pdf", "a"}) EXPECT_EQ(error(name), "") << name;
  EXPECT_NE(error("a.jpg").find("a.jpg' is a picture of format 'jpg'; it must be png, svg or pdf"),
            std::string::npos)
      << error("a.jpg");
  EXPECT_NE(error("none/a.png"), "");
}

}  // namespace
}  // namespace lighthouse::app
