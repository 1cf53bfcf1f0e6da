#include "lora/core/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "core/once.h"
#include "lora/core/file.h"
#include "support.h"

namespace {

/// What `action` writes to standard error.
template <class Action>
std::string captured_stderr(Action&& action) {
  const lora::testing::ScratchFolder scratch;
  const lora::Path file = scratch.path() / "stderr";
  std::fflush(stderr);
  const int saved = ::dup(STDERR_FILENO);
  const int opened = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::dup2(opened, STDERR_FILENO);
  action();
  std::fflush(stderr);
  ::dup2(saved, STDERR_FILENO);
  ::close(saved);
  ::close(opened);
  return lora::read_file(file);
}

}  // namespace

TEST_CASE("log lines are plain text without colour when stderr is no terminal", "[core]") {
  const std::string text = captured_stderr([] {
    lora::log::error("disk full");
    lora::log::warn("no such key");
    lora::log::info("step 1");
    lora::log::debug("hidden");
  });
  CHECK(text == "error: disk full\nwarning: no such key\nstep 1\n");
}

TEST_CASE("the level decides what is logged", "[core]") {
  const auto log_all = [] {
    lora::log::error("e");
    lora::log::warn("w");
    lora::log::info("i");
    lora::log::debug("d");
  };
  lora::log::set_level(lora::log::Level::kError);
  CHECK(lora::log::level() == lora::log::Level::kError);
  CHECK(captured_stderr(log_all) == "error: e\n");
  lora::log::set_level(lora::log::Level::kDebug);
  CHECK(lora::log::level() == lora::log::Level::kDebug);
  CHECK(captured_stderr(log_all) == "error: e\nwarning: w\ni\ndebug: d\n");
  lora::log::set_level(lora::log::Level::kInfo);
}

TEST_CASE("text from outside can neither format nor drive the terminal", "[core]") {
  CHECK(captured_stderr([] { lora::log::warn("{} %s \x1b[2J"); }) == "warning: {} %s \\x1b[2J\n");
}

TEST_CASE("what is said once is logged the first time", "[core]") {
  const std::string text = captured_stderr([] {
    for (int i = 0; i < 3; ++i) lora::say_once("no kernel");
    lora::say_once("no plan");
  });
  CHECK(text == "no kernel\nno plan\n");
}
