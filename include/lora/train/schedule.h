#pragma once

#include <cstdint>
#include <string>

namespace lora::train {

/// The learning rate by steps.
struct ScheduleOptions {
  std::string type = "constant";  ///< constant | linear | cosine | polynomial
  double lr = 2e-4;
  int64_t warmup_steps = 0, total_steps = 0;
  double end = 0;             ///< an absolute rate, never gone below after warm-up; not used by constant
  double power = 1;           ///< of polynomial
  bool count_skipped = true;  ///< false: a step that an overflow left out does not advance the rate
};

/// The learning rate of `step` (from 1; with count_skipped off, of steps that were not left out):
/// with n = step - 1, lr * n / warmup_steps while n < warmup_steps; then from lr down to `end` over
/// the rest of total_steps, and `end` beyond them.
/// With p the part of that rest already done: linear 1 - p, polynomial (1 - p)^power, cosine
/// (1 + cos(pi p)) / 2. Throws ConfigError for another type.
double learning_rate(const ScheduleOptions& options, int64_t step);

}  // namespace lora::train
