#pragma once

#include <cstdint>

namespace lora::ops {

/// How some cores were used for a while, as the mean number of cores.
struct CoreUse {
  double own = 0;     ///< by this process
  double others = 0;  ///< by other processes; clocks of different fineness may put it somewhat below 0
  double idle = 0;
};

/// Whether other programs want the cores that this one computes on, judged by what they did lately.
class Crowding {
 public:
  /// Takes in one more look. Where this process hardly computed, what others did meanwhile says nothing.
  bool after(const CoreUse& use) {
    constexpr double kComputes = 0.1, kMemory = 0.7, kMany = 0.5, kFew = 0.25, kRoom = 0.5;
    if (use.own < kComputes) return is_crowded_;
    others_ = kMemory * others_ + (1 - kMemory) * use.others;
    idle_ = kMemory * idle_ + (1 - kMemory) * use.idle;
    // Brief waits leave cores idle, too: only much room is a sign that nobody is in the way any more.
    is_crowded_ = is_crowded_ ? others_ > kFew && idle_ < 2 * others_ : others_ > kMany && idle_ < kRoom;
    return is_crowded_;
  }

 private:
  double others_ = 0, idle_ = 1;  // as if all had been well so far
  bool is_crowded_ = false;
};

/// Seconds since the machine started, of each kind, on the cores that the process may run on; of this process on any core.
struct CoreTimes {
  double busy = 0, idle = 0, own = 0, clock = 0;
};

/// Mean use between two looks, of which `before` came first.
inline CoreUse use_between(const CoreTimes& before, const CoreTimes& after) {
  const double elapsed = after.clock - before.clock;
  if (elapsed <= 0) return {};
  const double own = after.own - before.own;
  return {own / elapsed, (after.busy - before.busy - own) / elapsed, (after.idle - before.idle) / elapsed};
}

}  // namespace lora::ops
