#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "lora/train/step.h"

namespace lora::train {

/// Notices when a run spends its time on loading: more than 5 % of the time of 50 steps in a row, waits and copies
/// together. The first step, for which nothing can be ready, is left out.
class LoadingWatch {
 public:
  struct Workers {
    int64_t count;
    bool are_chosen;  ///< by the loader itself
  };

  /// A line that names the cause and the setting to change, once; else nothing.
  std::optional<std::string> add(const StepResult& result, const Workers& workers);

 private:
  std::deque<StepResult> steps_;
  bool is_first_ = true, has_spoken_ = false;
};

}  // namespace lora::train
