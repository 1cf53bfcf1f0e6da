#include "lora/train/progress.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>

#include "lora/core/file.h"
#include "lora/core/log.h"
#include "support.h"
#include "train/page_text.h"
#include "variable.h"

using lora::testing::count;
using lora::testing::Variable;
using lora::train::Progress;
using lora::train::StepResult;

namespace {

/// Sends stderr elsewhere for a scope.
class RedirectedStderr {
 public:
  explicit RedirectedStderr(int target) {
    std::fflush(stderr);
    saved_ = ::dup(STDERR_FILENO);
    ::dup2(target, STDERR_FILENO);
  }
  ~RedirectedStderr() {
    std::fflush(stderr);
    ::dup2(saved_, STDERR_FILENO);
    ::close(saved_);
  }
  RedirectedStderr(const RedirectedStderr&) = delete;
  RedirectedStderr& operator=(const RedirectedStderr&) = delete;

 private:
  int saved_ = -1;
};

template <class Action>
std::string written_to_file(Action action) {
  const lora::testing::ScratchFolder scratch;
  const lora::Path path = scratch / "stderr";
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
  {
    const RedirectedStderr redirected(file);
    action();
  }
  ::close(file);
  return lora::read_file(path);
}

/// A bare container may have no pseudo-terminals (/dev/pts is not mounted): says so, and the test passes over.
bool no_terminal() {
  int controller = -1, terminal = -1;
  if (::openpty(&controller, &terminal, nullptr, nullptr, nullptr) == 0) {
    ::close(controller);
    ::close(terminal);
    return false;
  }
  WARN("skipped: there are no pseudo-terminals here");
  return true;
}

/// What a terminal of this width gets to see.
template <class Action>
std::string written_to_terminal(unsigned short columns, Action action) {
  int controller = -1, terminal = -1;
  winsize size = {};
  size.ws_row = 24;
  size.ws_col = columns;
  REQUIRE(::openpty(&controller, &terminal, nullptr, nullptr, &size) == 0);
  constexpr char kEnd = '\x1e';  // read to here: what is on its way when a terminal closes may be lost
  std::string text;
  std::thread reader([&] {
    char buffer[4096];
    for (ssize_t count = 0; !text.ends_with(kEnd) && (count = ::read(controller, buffer, sizeof buffer)) > 0;) {
      text.append(buffer, static_cast<size_t>(count));
    }
  });
  {
    const RedirectedStderr redirected(terminal);
    action();
  }
  const bool written = ::write(terminal, &kEnd, 1) == 1;
  reader.join();
  ::close(terminal);
  ::close(controller);
  REQUIRE((written && text.ends_with(kEnd)));
  text.pop_back();
  return text;
}

StepResult step_of(int64_t number) {
  StepResult result;
  result.step = number;
  result.loss = 2.12344;
  result.learning_rate = 2e-4;
  result.grad_norm = 0.52;
  result.tokens = 150;  // 150 / 0.121
  result.tokens_per_second = 1234.4;
  result.step_seconds = 0.12;
  result.data_seconds = 0.001;
  result.peak_bytes = 512u << 20;
  return result;
}

void show_steps(int64_t first, int64_t last, int64_t total, int64_t interval) {
  Progress progress(total, interval);
  for (int64_t i = first; i <= last; ++i) progress.show(step_of(i));
  progress.finish();
}

}  // namespace

TEST_CASE("without a terminal progress is plain lines", "[train]") {
  const std::string text = written_to_file([] { show_steps(1, 1, 300, 10); });
  CHECK(text ==
        "step 1/300 epoch 1 loss 2.1234 mean 2.1234 lr 2.00e-04 grad_norm 0.52 scale 1 overflow no 1240 tok/s "
        "step 0.120 s data 0.001 s mem 512.0 MiB\n");
}

TEST_CASE("plain lines: the first step, each interval and the last", "[train]") {
  const std::string text = written_to_file([] { show_steps(1, 25, 25, 10); });
  CHECK(count(text, "\n") == 4);
  for (const char* start : {"step 1/25", "step 10/25", "step 20/25", "step 25/25"}) {
    CHECK(count(text, start) == 1);
  }
  // A resumed run that ends before its last step.
  const std::string resumed = written_to_file([] { show_steps(13, 17, 25, 10); });
  CHECK(count(resumed, "\n") == 2);
  CHECK(count(resumed, "step 13/25") == 1);
  CHECK(count(resumed, "step 17/25") == 1);
  CHECK(count(written_to_file([] { show_steps(1, 9, 0, 0); }), "\n") == 2);
}

TEST_CASE("a step with a held-out loss is always shown", "[train]") {
  const std::string text = written_to_file([] {
    Progress progress(100, 10);
    for (int64_t i = 1; i <= 5; ++i) {
      StepResult result = step_of(i);
      if (i >= 3) result.eval_loss = 1.75;
      result.is_best = i == 4;
      progress.show(result);
    }
  });
  CHECK(count(text, "\n") == 4);
  CHECK(count(text, " eval_loss 1.7500\n") == 2);
  CHECK(count(text, " eval_loss 1.7500 (best)\n") == 1);
}

TEST_CASE("a plain line tells of the steps since the one before", "[train]") {
  const std::string text = written_to_file([] {
    Progress progress(124, 4, 3);
    for (int64_t i = 1; i <= 8; ++i) {
      StepResult result = step_of(i);
      result.epoch = i < 6 ? 0 : 1;
      result.loss = i == 7 ? std::numeric_limits<double>::infinity() : static_cast<double>(i);
      result.overflow = i == 6 || i == 7;
      result.step_seconds = 0.1 * static_cast<double>(i);
      result.data_seconds = 0.5;
      result.tokens = 100 * i;
      result.loss_scale = 0x1p28;
      result.learning_rate = 2.45e-6;
      progress.show(result);
    }
  });
  CHECK(count(text, "\n") == 3);
  // Steps 2 to 4: 900 tokens in 0.9 + 1.5 s.
  CHECK(count(text,
              "step 4/124 epoch 1/3 loss 4.0000 mean 3.0000 lr 2.45e-06 grad_norm 0.52 scale 2.68435e+08 overflow no 375 tok/s "
              "step 0.300 s data 0.500 s mem 512.0 MiB\n") == 1);
  // Steps 5 to 8, one of whose losses is not finite: 2600 tokens in 2.6 + 2 s.
  CHECK(
      count(text,
            "step 8/124 epoch 2/3 loss 8.0000 mean 6.3333 lr 2.45e-06 grad_norm 0.52 scale 2.68435e+08 overflow 2 of 4 565 tok/s "
            "step 0.650 s data 0.500 s mem 512.0 MiB\n") == 1);
}

TEST_CASE("a quiet log is a quiet progress", "[train]") {
  if (no_terminal()) return;
  lora::log::set_level(lora::log::Level::kError);
  CHECK(written_to_file([] { show_steps(1, 10, 10, 1); }).empty());
  const Variable type("TERM", "xterm");
  CHECK(written_to_terminal(80, [] { show_steps(1, 10, 10, 1); }).empty());
  lora::log::set_level(lora::log::Level::kInfo);
}

TEST_CASE("a terminal gets one line that redraws itself", "[train]") {
  if (no_terminal()) return;
  const Variable type("TERM", "xterm"), locale("LC_ALL", "C.UTF-8"), colour("NO_COLOR", "1");
  const std::string text = written_to_terminal(120, [] { show_steps(150, 300, 300, 10); });
  CHECK(count(text, "\n") == 1);
  CHECK(text.ends_with("\n"));
  // Drawn for the first and the last step; the others come at once.
  CHECK(count(text, "\r\x1b[K") == 2);
  CHECK(
      text.starts_with("\r\x1b[K150/300  50% ██████████░░░░░░░░░░ loss 2.1234 lr 2.0e-04 grad 0.52 1234 tok/s "
                       "data 0.001s eta 00:0"));
  CHECK(count(text, "300/300 100% ████████████████████ loss") == 1);
  CHECK(count(text, "\x1b[3") == 0);
}

TEST_CASE("colour and block characters are only used where they show", "[train]") {
  if (no_terminal()) return;
  const Variable type("TERM", "xterm"), locale("LC_ALL", "C"), colour("NO_COLOR", "");
  const std::string text = written_to_terminal(120, [] { show_steps(1, 1, 2, 10); });
  CHECK(count(text, "\x1b[32m##########..........\x1b[0m loss") == 1);
}

TEST_CASE("the bar is cut to the terminal's width", "[train]") {
  if (no_terminal()) return;
  const Variable type("TERM", "xterm"), locale("LC_ALL", "C"), colour("NO_COLOR", "1");
  for (unsigned short columns = 2; columns < 120; ++columns) {
    const std::string text = written_to_terminal(columns, [] { show_steps(1, 1, 100, 10); });
    const size_t begin = text.find("\x1b[K") + 3;
    CHECK(text.find_first_of("\r\n", begin) - begin < columns);
  }
}

TEST_CASE("a terminal that cannot redraw gets plain lines", "[train]") {
  if (no_terminal()) return;
  const Variable type("TERM", "dumb");
  const std::string text = written_to_terminal(80, [] { show_steps(1, 1, 2, 10); });
  CHECK(text.starts_with("step 1/2 "));
}

TEST_CASE("an abandoned bar ends its line", "[train]") {
  if (no_terminal()) return;
  const Variable type("TERM", "xterm");
  const std::string text = written_to_terminal(80, [] { Progress(10, 1).show(step_of(1)); });
  CHECK(text.ends_with("\n"));
}
