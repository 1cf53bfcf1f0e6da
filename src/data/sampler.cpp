#include "lora/data/sampler.h"

#include <algorithm>
#include <mutex>

#include "core/check.h"
#include "lora/core/random.h"

namespace lora::data {
namespace {

constexpr int64_t kMaxRowsPerStep = int64_t{1} << 40;

int64_t rows_per_step(const SamplerOptions& options) {
  int64_t product = 1;
  for (const int64_t factor : {options.micro_batch, options.grad_accum, options.ranks}) {
    require<ConfigError>(factor >= 1 && factor <= kMaxRowsPerStep / product,
                         "[data] micro_batch, grad_accum and ranks must be positive, at most 2^40 "
                         "together; found {}, {}, {}",
                         options.micro_batch, options.grad_accum, options.ranks);
    product *= factor;
  }
  return product;
}

}  // namespace

/// The shuffled order of the epoch asked for last. Making it costs more than a step should; the
/// epoch's first caller pays.
class Sampler::EpochOrder {
 public:
  std::shared_ptr<const std::vector<int64_t>> get(int64_t epoch, const SamplerOptions& options) {
    const std::lock_guard lock(mutex_);
    if (!order_ || epoch != epoch_) {
      const uint64_t seed = mix_seed({options.seed, static_cast<uint64_t>(epoch)});
      order_ = std::make_shared<const std::vector<int64_t>>(permutation(options.num_rows, seed));
      epoch_ = epoch;
    }
    return order_;
  }

 private:
  std::mutex mutex_;
  int64_t epoch_ = 0;
  std::shared_ptr<const std::vector<int64_t>> order_;
};

Sampler::Sampler(const SamplerOptions& options) : options_(options), rows_per_step_(rows_per_step(options)) {
  require<ConfigError>(options.num_rows >= 1, "[data] the data set must have rows; found {}", options.num_rows);
  require<ConfigError>(options.rank >= 0 && options.rank < options.ranks, "[data] rank must be in [0, {}); found {}",
                       options.ranks, options.rank);
  const int64_t whole = options.num_rows / rows_per_step_;
  const int64_t started = (options.num_rows + rows_per_step_ - 1) / rows_per_step_;
  steps_per_epoch_ = options.drop_last ? std::max<int64_t>(whole, 1) : started;
  if (options.shuffle) order_ = std::make_shared<EpochOrder>();
}

std::vector<std::vector<int64_t>> Sampler::rows_of(int64_t step) const {
  require<ConfigError>(step >= 0, "[data] steps must count from 0; found {}", step);
  const auto order = order_ ? order_->get(epoch_of(step), options_) : nullptr;
  const int64_t step_begin = (step % steps_per_epoch_) * rows_per_step_;
  const int64_t slice_rows = options_.micro_batch * options_.ranks;

  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t slice = 0; slice < options_.grad_accum; ++slice) {
    const int64_t begin = step_begin + slice * slice_rows + options_.rank * options_.micro_batch;
    const int64_t end = std::min(begin + options_.micro_batch, options_.num_rows);
    if (begin >= end) break;
    std::vector<int64_t>& rows = micro_batches.emplace_back();
    for (int64_t i = begin; i < end; ++i) rows.push_back(order ? (*order)[i] : i);
  }
  return micro_batches;
}

}  // namespace lora::data
