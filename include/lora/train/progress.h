#pragma once

#include <cstdint>
#include <memory>

#include "lora/train/step.h"

namespace lora::train {

/// Shows progress on stderr: a bar that redraws itself on a terminal, else one plain line for the first step, every
/// `log_interval` steps, steps with a held-out loss and the last step. A line has the step's loss and, since the line before,
/// the mean of finite ones, mean times, the speed and the number of overflows. Nothing when the log level leaves out
/// information. NO_COLOR, TERM and the locale are honoured.
class Progress {
 public:
  /// total_steps, total_epochs 0: not known. The time left is reckoned from now on.
  Progress(int64_t total_steps, int64_t log_interval, int64_t total_epochs = 0);
  /// Ends the bar's line, when finish() did not.
  ~Progress();
  void show(const StepResult& result);
  /// Shows the last step, when that was not done yet, and ends the bar's line.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lora::train
