#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace lora::data {

/// The order of rows: a pure function of these.
struct SamplerOptions {
  int64_t num_rows = 0;
  int64_t micro_batch = 1;  ///< rows per rank and micro-batch
  int64_t grad_accum = 1;   ///< micro-batches per optimizer step
  int64_t ranks = 1, rank = 0;
  bool shuffle = true;
  bool drop_last = true;  ///< leave out an epoch's last, smaller step (kept when it would be the only one)
  uint64_t seed = 0;
};

/// Which rows each optimizer step uses, as a pure function of the options and the step: there is no
/// position to save. A step takes micro_batch * grad_accum * ranks consecutive rows of the epoch's
/// order; within each accumulation slice, rank k takes the k-th contiguous micro_batch.
/// Thread-safe; copies share the order of the epoch in use.
class Sampler {
 public:
  /// Throws ConfigError when a number is not positive, the rank is not below ranks, or there are no
  /// rows.
  explicit Sampler(const SamplerOptions& options);

  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  int64_t epoch_of(int64_t step) const { return step / steps_per_epoch_; }
  /// Rows (0-based) of this rank for optimizer step `step` (from 0), one inner vector per
  /// micro-batch; micro-batches without rows are left out.
  std::vector<std::vector<int64_t>> rows_of(int64_t step) const;

 private:
  class EpochOrder;
  SamplerOptions options_;
  int64_t rows_per_step_ = 0, steps_per_epoch_ = 0;
  std::shared_ptr<EpochOrder> order_;  ///< null without shuffling
};

}  // namespace lora::data
