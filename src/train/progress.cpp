#include "lora/train/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/core/text.h"

namespace lora::train {
namespace {

constexpr double kSecondsBetweenDrawings = 0.1;
constexpr int64_t kBarCells = 20;
constexpr std::string_view kClearLine = "\r\x1b[K", kGreen = "\x1b[32m", kNoColour = "\x1b[0m";

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// True when stderr can redraw a line.
bool is_terminal() {
  const std::string_view type = variable("TERM");
  return ::isatty(STDERR_FILENO) == 1 && !type.empty() && type != "dumb";
}

bool shows_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string_view value = variable(name);
    if (value.empty()) continue;
    return value.ends_with("UTF-8") || value.ends_with("utf8");
  }
  return false;
}

/// Columns of the terminal now: people resize windows.
int64_t terminal_columns() {
  winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(std::min(seconds, 1e9) + 0.5);
  const int64_t hours = total / 3600, minutes = total / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60);
  return fmt::format("{:02}:{:02}", minutes, total % 60);
}

/// "10/300", or "10" when the end is not known.
std::string of_total(int64_t number, int64_t total) {
  return total > 0 ? fmt::format("{}/{}", number, total) : fmt::format("{}", number);
}

/// " eval_loss 1.7500 (best)", or nothing.
std::string held_out(const StepResult& result) {
  if (!result.eval_loss) return {};
  return fmt::format(" eval_loss {:.4f}{}", *result.eval_loss, result.is_best ? " (best)" : "");
}

/// What the steps since the last line come to.
class Recent {
 public:
  void add(const StepResult& result) {
    ++steps_;
    overflows_ += result.overflow ? 1 : 0;
    tokens_ += result.tokens;
    step_seconds_ += result.step_seconds;
    data_seconds_ += result.data_seconds;
    if (!std::isfinite(result.loss)) return;
    ++finite_losses_;
    loss_sum_ += result.loss;
  }

  double mean_loss() const { return finite_losses_ > 0 ? loss_sum_ / static_cast<double>(finite_losses_) : std::nan(""); }
  double mean_step_seconds() const { return step_seconds_ / static_cast<double>(steps_); }
  double mean_data_seconds() const { return data_seconds_ / static_cast<double>(steps_); }
  double tokens_per_second() const {
    const double seconds = step_seconds_ + data_seconds_;
    return seconds > 0 ? static_cast<double>(tokens_) / seconds : 0;
  }
  std::string overflows() const { return overflows_ == 0 ? "no" : fmt::format("{} of {}", overflows_, steps_); }

 private:
  int64_t steps_ = 0, overflows_ = 0, tokens_ = 0, finite_losses_ = 0;
  double step_seconds_ = 0, data_seconds_ = 0, loss_sum_ = 0;
};

std::string plain_line(const StepResult& result, const Recent& recent, int64_t total_steps, int64_t total_epochs) {
  std::string line = fmt::format(
      "step {} epoch {} loss {:.4f} mean {:.4f} lr {:.2e} grad_norm {:.4g} scale {:g} overflow {} {:.0f} tok/s step {:.3f} s "
      "data {:.3f} s "
      "mem {}",
      of_total(result.step, total_steps), of_total(result.epoch + 1, total_epochs), result.loss, recent.mean_loss(),
      result.learning_rate, result.grad_norm, result.loss_scale, recent.overflows(), recent.tokens_per_second(),
      recent.mean_step_seconds(), recent.mean_data_seconds(), human_bytes(result.peak_bytes));
  if (result.sol_percent) line += fmt::format(" sol {:.0f} %", *result.sol_percent);
  if (result.reg_loss) line += fmt::format(" reg_loss {:.4g}", *result.reg_loss);
  return line + held_out(result);
}

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

struct Progress::State {
  enum class Mode { kSilent, kPlain, kBar };

  int64_t total_steps, log_interval, total_epochs;
  Mode mode;
  bool colour = variable("NO_COLOR").empty(), utf8 = shows_utf8();
  Stopwatch since_start = {}, since_drawing = {};
  int64_t steps_seen = 0;
  std::optional<StepResult> waiting = {};  ///< the last step, as long as it is not shown
  Recent recent = {};
  bool bar_is_open = false;

  void show_plain(const StepResult& result) {
    const bool on_interval = log_interval > 0 && result.step % log_interval == 0;
    if (steps_seen == 1 || on_interval || result.step == total_steps || result.eval_loss) {
      say(result);
      waiting.reset();
    }
  }

  void say(const StepResult& result) {
    log::info(plain_line(result, recent, total_steps, total_epochs));
    recent = {};
  }

  void show_bar(const StepResult& result) {
    if (result.eval_loss) {
      print(fmt::format("{}step {}{}\n", kClearLine, of_total(result.step, total_steps), held_out(result)));
    }
    const bool is_due =
        steps_seen == 1 || since_drawing.seconds() >= kSecondsBetweenDrawings || result.step == total_steps || result.eval_loss;
    if (is_due) draw(result);
  }

  void draw(const StepResult& result) {
    print(fmt::format("{}{}", kClearLine, bar_line(result, terminal_columns() - 1)));
    since_drawing.restart();
    waiting.reset();
    bar_is_open = true;
  }

  /// Position and bar, then as many fields as fit into `columns`.
  std::string bar_line(const StepResult& result, int64_t columns) const {
    std::string line = fmt::format("{:>{}}", of_total(result.step, total_steps), 2 * fmt::formatted_size("{}", total_steps) + 1);
    if (total_steps > 0) line += fmt::format(" {:3}%", 100 * done(result) / total_steps);
    columns -= static_cast<int64_t>(line.size());
    if (columns < 0) return {};
    if (total_steps > 0 && columns > kBarCells) {
      line += ' ' + bar(result);
      columns -= kBarCells + 1;
    }
    for (const std::string& field : fields(result)) {
      columns -= static_cast<int64_t>(field.size()) + 1;
      if (columns < 0) break;
      line += ' ' + field;
    }
    return line;
  }

  std::string bar(const StepResult& result) const {
    const int64_t full = kBarCells * done(result) / total_steps;
    std::string cells(colour ? kGreen : "");
    for (int64_t i = 0; i < kBarCells; ++i) {
      if (utf8) {
        cells += i < full ? "█" : "░";
      } else {
        cells += i < full ? '#' : '.';
      }
    }
    return cells.append(colour ? kNoColour : "");
  }

  std::vector<std::string> fields(const StepResult& result) const {
    std::vector<std::string> texts{fmt::format("loss {:.4f}", result.loss), fmt::format("lr {:.1e}", result.learning_rate),
                                   fmt::format("grad {:.2g}", result.grad_norm),
                                   fmt::format("{:.0f} tok/s", result.tokens_per_second),
                                   fmt::format("data {:.3f}s", result.data_seconds)};
    if (total_steps > 0) texts.push_back("eta " + remaining(result));
    return texts;
  }

  std::string remaining(const StepResult& result) const {
    const double per_step = since_start.seconds() / static_cast<double>(steps_seen);
    return duration(per_step * static_cast<double>(total_steps - done(result)));
  }

  int64_t done(const StepResult& result) const { return std::clamp<int64_t>(result.step, 0, total_steps); }
};

Progress::Progress(int64_t total_steps, int64_t log_interval, int64_t total_epochs)
    : state_(new State{std::max<int64_t>(total_steps, 0), log_interval, total_epochs, State::Mode::kPlain}) {
  if (log::level() < log::Level::kInfo) {
    state_->mode = State::Mode::kSilent;
  } else if (is_terminal()) {
    state_->mode = State::Mode::kBar;
  }
}

Progress::~Progress() {
  if (state_->bar_is_open) print("\n");
}

void Progress::show(const StepResult& result) {
  if (state_->mode == State::Mode::kSilent) return;
  ++state_->steps_seen;
  state_->waiting = result;
  if (state_->mode == State::Mode::kBar) {
    state_->show_bar(result);
  } else {
    state_->recent.add(result);
    state_->show_plain(result);
  }
}

void Progress::finish() {
  if (const auto last = std::exchange(state_->waiting, std::nullopt)) {
    if (state_->mode == State::Mode::kBar) {
      state_->draw(*last);
    } else {
      state_->say(*last);
    }
  }
  if (std::exchange(state_->bar_is_open, false)) print("\n");
}

}  // namespace lora::train
