#include "lora/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace lora::train {
namespace {

/// How much of the way from lr to `end` is left, from 1 to 0, at part `done` of the decay.
double remaining(const ScheduleOptions& options, double done) {
  if (options.type == "linear") return 1 - done;
  if (options.type == "polynomial") return std::pow(1 - done, options.power);
  if (options.type == "cosine") return (1 + std::cos(std::numbers::pi * done)) / 2;
  fail<ConfigError>("[lr_schedule] type must be constant, linear, cosine or polynomial; found {:?}; use constant", options.type);
}

}  // namespace

double learning_rate(const ScheduleOptions& options, int64_t step) {
  const int64_t done = step - 1;
  if (done < options.warmup_steps) {
    return options.lr * static_cast<double>(done) / static_cast<double>(options.warmup_steps);
  }
  if (options.type == "constant") return options.lr;
  const auto decay_steps = static_cast<double>(std::max<int64_t>(1, options.total_steps - options.warmup_steps));
  const double part = std::min(1.0, static_cast<double>(done - options.warmup_steps) / decay_steps);
  const double rate = options.end + (options.lr - options.end) * remaining(options, part);
  return std::max(options.end, rate);
}

}  // namespace lora::train
