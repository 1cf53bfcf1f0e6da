#pragma once

#include <cstdint>

#include "lora/core/stopwatch.h"

namespace lora::data {

/// Decides when a loader that chooses its number of workers starts another one: while steps wait for batches. Where
/// the last one did not make them wait less it pauses, since the source itself may be the limit.
class WorkerGrowth {
 public:
  /// Most workers that are started: a few even on a small machine, since reading may be waiting for a disk or a network
  /// rather than computing.
  static int64_t most_workers();

  /// To be called after each step's batches were waited for `waited_seconds`. True when a worker should be added.
  bool is_due(double waited_seconds, int64_t workers);
  /// The same with the time since the call before, which is measured otherwise.
  bool is_due(double waited_seconds, double step_seconds, int64_t workers);

 private:
  Stopwatch since_call_;
  static constexpr double kNoGrowth = 2;  ///< a share that everything is less than

  bool is_first_ = true;
  int64_t steps_ = 0;  ///< in the stretch that is being looked at; negative: before it begins
  double waited_ = 0, total_ = 0;
  double share_before_ = kNoGrowth;  ///< of waiting, in the stretch before, when a worker was added after it
};

}  // namespace lora::data
