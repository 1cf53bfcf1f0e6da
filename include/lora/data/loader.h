#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "lora/data/row_source.h"
#include "lora/data/sampler.h"
#include "lora/ops/batch.h"

namespace lora::data {

/// Which rows make a step, in which order, and how far ahead they are prepared.
struct LoaderOptions {
  int64_t batch_size = 8;  ///< rows per micro-batch
  int64_t grad_accum = 1;
  bool shuffle = true, drop_last = true;
  uint64_t seed = 0;
  int64_t rank = 0, ranks = 1;
  /// Threads that make batches, up to 256; 0: next() itself makes them. Nothing: one, and more for as long as next() has
  /// to wait and more of them help. What next() gives does not depend on them.
  std::optional<int64_t> workers = 1;
  int64_t prefetch = 2;    ///< steps kept ready, at least one per worker
  int64_t first_step = 0;  ///< steps already done
  int64_t num_steps = -1;  ///< steps in all, the data starting over as often as needed; -1: one epoch
  int64_t pad_id = 0;
  int64_t pad_to_multiple_of = 1, max_length = 0;  ///< as in collate
  /// Packs rows into sequences of at most so many tokens (see pack_rows); batch_size then counts packs. 0: off.
  int64_t pack_to = 0;
  bool pinned = false;  ///< as in collate
};

/// The micro-batches of one optimizer step; none when a short step leaves this rank without rows.
struct StepData {
  int64_t step = 0;   ///< from 1
  int64_t epoch = 0;  ///< from 0
  std::vector<Batch> micro_batches;
  double data_seconds = 0;  ///< how long next() waited
  /// What making the batches took, wherever it was done: reading the rows, and turning them into tensors.
  double read_seconds = 0, transform_seconds = 0;
};

/// Batches made ahead by worker threads, in order, through a bounded queue. An exception in a
/// worker reaches the caller of next(), in its step's turn, and every later call. One thread calls
/// next(). The rows must outlive the loader.
class Loader {
 public:
  /// Throws ConfigError for options out of range or a source without rows.
  Loader(const RowSource& rows, const LoaderOptions& options);
  ~Loader();
  Loader(Loader&&) noexcept;

  /// The next step's batches, or nothing after the last step.
  std::optional<StepData> next();
  int64_t steps_per_epoch() const;
  int64_t num_steps() const;
  /// Threads that make batches now.
  int64_t num_workers() const;
  bool chooses_workers() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lora::data
