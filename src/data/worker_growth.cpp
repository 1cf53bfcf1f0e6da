#include "data/worker_growth.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace lora::data {
namespace {

constexpr double kLeastShare = 0.02;     // of a step's time; less is no loss
constexpr double kLeastSeconds = 0.001;  // per step; less is the noise of threads
constexpr double kLeastGain = 0.1;       // of the waiting, by which a further worker must have lowered it
constexpr int64_t kLeastSteps = 4;
constexpr int64_t kPause = 100;  // steps after a growth in vain

}  // namespace

int64_t WorkerGrowth::most_workers() {
  return std::clamp<int64_t>(static_cast<int64_t>(std::thread::hardware_concurrency()) - 1, 8, 32);
}

bool WorkerGrowth::is_due(double waited_seconds, int64_t workers) {
  const double step_seconds = since_call_.seconds();
  since_call_.restart();
  return is_due(waited_seconds, step_seconds, workers);
}

bool WorkerGrowth::is_due(double waited_seconds, double step_seconds, int64_t workers) {
  // Nothing can be ready for the first step.
  if (std::exchange(is_first_, false) || workers < 1 || workers >= most_workers()) return false;
  if (++steps_ <= 0) return false;
  waited_ += waited_seconds;
  total_ += step_seconds;
  // Workers that started together deliver together: their common stretch tells, not a single step.
  if (steps_ < std::max(kLeastSteps, 2 * workers)) return false;
  const double share = total_ > 0 ? waited_ / total_ : 0;
  const bool waits = share > kLeastShare && waited_ > kLeastSeconds * static_cast<double>(steps_);
  const bool was_in_vain = share > (1 - kLeastGain) * share_before_;
  share_before_ = kNoGrowth;
  waited_ = total_ = 0;
  steps_ = was_in_vain ? -kPause : 0;
  if (!waits || was_in_vain) return false;
  share_before_ = share;
  steps_ = -workers;  // until the new one delivers
  return true;
}

}  // namespace lora::data
