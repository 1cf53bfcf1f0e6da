#pragma once

#include <cstdint>
#include <string>

namespace lora::train {

struct ScheduleOptions {
  std::string type = "constant";  ///< constant | linear | cosine | polynomial
  double lr = 2e-4;
  int64_t warmup_steps = 0, total_steps = 0;
  double end = 0;                 ///< an absolute rate, never gone below
  double power = 1;               ///< of polynomial
};

/// The learning rate of `step` (from 1): with n = step - 1, lr * n / warmup_steps while n < warmup_steps; then by
/// type down to `end` over the rest of total_steps.
double learning_rate(const ScheduleOptions& options, int64_t step);

}  // namespace lora::train
