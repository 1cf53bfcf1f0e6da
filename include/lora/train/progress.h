#pragma once

#include <cstdint>
#include <memory>

#include "lora/train/step.h"

namespace lora::train {

/// Shows progress on stderr: a bar that redraws itself on a terminal, else one plain line every `log_interval` steps.
class Progress {
 public:
  Progress(int64_t total_steps, int64_t log_interval);
  ~Progress();
  void show(const StepResult& result);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lora::train
