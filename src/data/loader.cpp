#include "lora/data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"
#include "data/worker_growth.h"
#include "lora/core/stopwatch.h"
#include "lora/data/collate.h"
#include "lora/data/packing.h"

namespace lora::data {
namespace {

constexpr int64_t kMaxWorkers = 256;
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
  const int64_t workers = options.workers.value_or(0);
  require<ConfigError>(workers >= 0 && workers <= kMaxWorkers, "[data.loader] workers must be in [0, {}]; found {}", kMaxWorkers,
                       workers);
  require<ConfigError>(options.pad_to_multiple_of >= 1, "[data.loader] pad_to_multiple_of must be at least 1; found {}",
                       options.pad_to_multiple_of);
  require<ConfigError>(options.prefetch >= 1, "[data.loader] prefetch must be at least 1; found {}", options.prefetch);
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

/// Makes the batches of steps; the rows that it reads go into the same memory every time. One for each thread.
class BatchMaker {
 public:
  BatchMaker(const RowSource& rows, const LoaderOptions& options, const Sampler& sampler,
             const std::vector<std::vector<int64_t>>& packs)
      : rows_(rows), options_(options), sampler_(sampler), packs_(packs) {}

  Made make(int64_t step) {
    Made made;
    try {
      made.data.step = step + 1;
      made.data.epoch = sampler_.epoch_of(step);
      for (const std::vector<int64_t>& numbers : sampler_.rows_of(step)) add_batch(numbers, made.data);
    } catch (...) {
      made = {.data = {}, .error = std::current_exception()};
    }
    return made;
  }

 private:
  void add_batch(const std::vector<int64_t>& numbers, StepData& data) {
    Stopwatch watch;
    const auto examples = packs_.empty() ? read(numbers) : read(rows_of_packs(numbers));
    data.read_seconds += watch.seconds();
    watch.restart();
    data.micro_batches.push_back(packs_.empty() ? padded(examples) : packed(examples));
    data.transform_seconds += watch.seconds();
  }

  std::vector<int64_t> rows_of_packs(const std::vector<int64_t>& pack_numbers) const {
    std::vector<int64_t> numbers;
    for (const int64_t pack : pack_numbers) {
      const auto& rows = packs_[static_cast<size_t>(pack)];
      numbers.insert(numbers.end(), rows.begin(), rows.end());
    }
    return numbers;
  }

  std::vector<const Example*> read(const std::vector<int64_t>& numbers) {
    if (examples_.size() < numbers.size()) examples_.resize(numbers.size());
    std::vector<const Example*> examples;
    for (const int64_t row : numbers) {
      Example& example = examples_[examples.size()];
      rows_.read(row, example);
      examples.push_back(&example);
    }
    return examples;
  }

  Batch padded(const std::vector<const Example*>& examples) const {
    return collate(examples, options_.pad_id, options_.pad_to_multiple_of, options_.max_length, options_.pinned);
  }

  Batch packed(const std::vector<const Example*>& examples) const {
    return collate_packed(examples, options_.pad_id, options_.pad_to_multiple_of > 1 ? kPackedMultiple : 1, options_.pinned);
  }

  const RowSource& rows_;
  const LoaderOptions& options_;
  const Sampler& sampler_;
  const std::vector<std::vector<int64_t>>& packs_;
  std::vector<Example> examples_;
};

}  // namespace

struct Loader::State {
  State(const RowSource& rows_in, const LoaderOptions& options_in)
      : rows(rows_in),
        options(options_in),
        packs(options.pack_to > 0 ? pack_rows(rows, options.pack_to) : std::vector<std::vector<int64_t>>()),
        sampler(sampler_options(options.pack_to > 0 ? static_cast<int64_t>(packs.size()) : rows.size(), options)) {
    check_options(options);
    num_steps = options.num_steps >= 0 ? options.num_steps : sampler.steps_per_epoch();
    step = next_to_make = next_to_give = options.first_step;
    const int64_t steps_left = std::max<int64_t>(num_steps - options.first_step, 0);
    try {
      start_workers(std::min(options.workers.value_or(1), steps_left));
    } catch (...) {
      stop_workers();  // the destructor does not run for a half-made object
      throw;
    }
  }

  ~State() { stop_workers(); }

  void start_workers(int64_t count) {
    const std::lock_guard lock(mutex);
    for (int64_t i = 0; i < count; ++i) workers.emplace_back([this] { work(); });
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

  /// How many steps may be there beyond those given; under the lock.
  int64_t steps_ahead() const {
    const auto count = static_cast<int64_t>(workers.size());
    return std::max(options.prefetch, options.workers ? count : count + 1);
  }

  BatchMaker maker() const { return {rows, options, sampler, packs}; }

  /// A worker: takes the next step that has room in the queue, until all are taken.
  void work() {
    BatchMaker batches = maker();
    std::unique_lock lock(mutex);
    while (true) {
      room.wait(lock, [this] { return stopping || next_to_make == num_steps || next_to_make < next_to_give + steps_ahead(); });
      if (stopping || next_to_make == num_steps) return;
      const int64_t step = next_to_make++;
      lock.unlock();
      Made made = batches.make(step);
      lock.lock();
      ready.emplace(step, std::move(made));
      arrived.notify_one();
    }
  }

  Made take(int64_t step) {
    if (options.workers == 0) return own_batches.make(step);
    std::unique_lock lock(mutex);
    arrived.wait(lock, [&] { return ready.contains(step); });
    Made made = std::move(ready.extract(step).mapped());
    ++next_to_give;
    lock.unlock();
    room.notify_one();
    return made;
  }

  /// One worker more when the waiting calls for it.
  void grow(double waited) {
    if (options.workers || !growth.is_due(waited, static_cast<int64_t>(workers.size()))) return;
    try {
      start_workers(1);
    } catch (const std::system_error&) {
      return;  // the system has no more threads: those that there are go on
    }
    room.notify_one();
  }

  const RowSource& rows;
  const LoaderOptions options;
  const std::vector<std::vector<int64_t>> packs;  ///< empty: not packed
  const Sampler sampler;
  int64_t num_steps = 0;
  int64_t step = 0;          ///< of the caller: the step that next() gives, from 0
  std::exception_ptr error;  ///< of the caller: what ended the loading
  BatchMaker own_batches = maker();
  WorkerGrowth growth;

  std::mutex mutex;  ///< guards what follows
  std::condition_variable room, arrived;
  std::map<int64_t, Made> ready;
  int64_t next_to_make = 0, next_to_give = 0;
  bool stopping = false;
  std::vector<std::thread> workers;  ///< changed by the caller alone
};

Loader::Loader(const RowSource& rows, const LoaderOptions& options) : state_(std::make_unique<State>(rows, options)) {}
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
  state_->grow(made.data.data_seconds);
  return std::move(made.data);
}

int64_t Loader::steps_per_epoch() const { return state_->sampler.steps_per_epoch(); }
int64_t Loader::num_steps() const { return state_->num_steps; }
int64_t Loader::num_workers() const { return static_cast<int64_t>(state_->workers.size()); }
bool Loader::chooses_workers() const { return !state_->options.workers; }

}  // namespace lora::data
