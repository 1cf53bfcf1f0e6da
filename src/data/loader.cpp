#include "lora/data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/check.h"
#include "lora/core/stopwatch.h"
#include "lora/data/collate.h"
#include "lora/data/packing.h"

namespace lora::data {
namespace {

constexpr int64_t kMaxWorkers = 64;
/// Packed rows come in few lengths, for the reason that collate gives.
constexpr int64_t kPackedMultiple = 64;

SamplerOptions sampler_options(int64_t num_rows, const LoaderOptions& options) {
  return {.num_rows = num_rows,
          .micro_batch = options.batch_size,
          .grad_accum = options.grad_accum,
          .ranks = options.ranks,
          .rank = options.rank,
          .shuffle = options.shuffle,
          .drop_last = options.drop_last,
          .seed = options.seed};
}

void check_options(const LoaderOptions& options) {
  require<ConfigError>(options.workers >= 0 && options.workers <= kMaxWorkers,
                       "[data.loader] workers must be in [0, {}]; found {}", kMaxWorkers,
                       options.workers);
  require<ConfigError>(options.pad_to_multiple_of >= 1,
                       "[data.loader] pad_to_multiple_of must be at least 1; found {}",
                       options.pad_to_multiple_of);
  require<ConfigError>(options.prefetch >= 1, "[data.loader] prefetch must be at least 1; found {}",
                       options.prefetch);
  require<ConfigError>(options.first_step >= 0 && options.num_steps >= -1,
                       "[data.loader] first_step must be at least 0 and num_steps at least -1; "
                       "found {} and {}",
                       options.first_step, options.num_steps);
}

/// What a worker made of a step: its data, or the exception that stopped it.
struct Made {
  StepData data;
  std::exception_ptr error;
};

}  // namespace

struct Loader::State {
  State(const Dataset& dataset_in, const LoaderOptions& options_in)
      : dataset(dataset_in),
        options(options_in),
        packs(options.pack_to > 0 ? pack_rows(dataset, options.pack_to)
                                  : std::vector<std::vector<int64_t>>()),
        sampler(sampler_options(
            options.pack_to > 0 ? static_cast<int64_t>(packs.size()) : dataset.size(), options)) {
    check_options(options);
    num_steps = options.num_steps >= 0 ? options.num_steps : sampler.steps_per_epoch();
    step = next_to_make = next_to_give = options.first_step;
    start_workers();
  }

  ~State() { stop_workers(); }

  void start_workers() {
    const int64_t steps_left = std::max<int64_t>(num_steps - options.first_step, 0);
    const int64_t count = std::min({options.workers, options.prefetch, steps_left});
    try {
      for (int64_t i = 0; i < count; ++i) workers.emplace_back([this] { work(); });
    } catch (...) {
      stop_workers();  // the destructor does not run for a half-made object
      throw;
    }
  }

  void stop_workers() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    room.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  StepData make(int64_t step) const {
    StepData data{.step = step + 1, .epoch = sampler.epoch_of(step), .micro_batches = {}};
    for (const std::vector<int64_t>& rows : sampler.rows_of(step)) {
      data.micro_batches.push_back(packs.empty() ? padded_batch(rows) : packed_batch(rows));
    }
    return data;
  }

  Batch padded_batch(const std::vector<int64_t>& rows) const {
    std::vector<const Example*> examples;
    for (const int64_t row : rows) examples.push_back(&dataset.examples[row]);
    return collate(examples, options.pad_id, options.pad_to_multiple_of, options.max_length);
  }

  Batch packed_batch(const std::vector<int64_t>& pack_numbers) const {
    std::vector<const Example*> examples;
    for (const int64_t pack : pack_numbers) {
      for (const int64_t row : packs[pack]) examples.push_back(&dataset.examples[row]);
    }
    return collate_packed(examples, options.pad_id,
                          options.pad_to_multiple_of > 1 ? kPackedMultiple : 1);
  }

  Made try_make(int64_t step) const {
    try {
      return {.data = make(step), .error = nullptr};
    } catch (...) {
      return {.data = {}, .error = std::current_exception()};
    }
  }

  /// A worker: takes the next step that has room in the queue, until all are taken.
  void work() {
    std::unique_lock lock(mutex);
    while (true) {
      room.wait(lock, [this] {
        return stopping || next_to_make == num_steps ||
               next_to_make < next_to_give + options.prefetch;
      });
      if (stopping || next_to_make == num_steps) return;
      const int64_t step = next_to_make++;
      lock.unlock();
      Made made = try_make(step);
      lock.lock();
      ready.emplace(step, std::move(made));
      arrived.notify_one();
    }
  }

  Made take(int64_t step) {
    if (options.workers == 0) return try_make(step);
    std::unique_lock lock(mutex);
    arrived.wait(lock, [&] { return ready.contains(step); });
    Made made = std::move(ready.extract(step).mapped());
    ++next_to_give;
    lock.unlock();
    room.notify_one();
    return made;
  }

  const Dataset& dataset;
  const LoaderOptions options;
  const std::vector<std::vector<int64_t>> packs;  ///< empty: not packed
  const Sampler sampler;
  int64_t num_steps = 0;
  int64_t step = 0;          ///< of the caller: the step that next() gives, from 0
  std::exception_ptr error;  ///< of the caller: what ended the loading

  std::mutex mutex;  ///< guards what follows
  std::condition_variable room, arrived;
  std::map<int64_t, Made> ready;
  int64_t next_to_make = 0, next_to_give = 0;
  bool stopping = false;
  std::vector<std::thread> workers;
};

Loader::Loader(const Dataset& dataset, const LoaderOptions& options)
    : state_(std::make_unique<State>(dataset, options)) {}
Loader::~Loader() = default;
Loader::Loader(Loader&&) noexcept = default;

std::optional<StepData> Loader::next() {
  if (state_->error) std::rethrow_exception(state_->error);
  if (state_->step >= state_->num_steps) return std::nullopt;
  const Stopwatch watch;
  Made made = state_->take(state_->step);
  if (made.error) {
    state_->error = made.error;
    std::rethrow_exception(made.error);
  }
  ++state_->step;
  made.data.data_seconds = watch.seconds();
  return std::move(made.data);
}

int64_t Loader::steps_per_epoch() const {
  return state_->sampler.steps_per_epoch();
}
int64_t Loader::num_steps() const {
  return state_->num_steps;
}

}  // namespace lora::data
