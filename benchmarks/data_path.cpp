// The way of the data: how fast rows become tensors, and how long steps wait for a slow source. See README.md.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include "lora/core/log.h"
#include "lora/core/random.h"
#include "lora/core/stopwatch.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
#include "lora/data/records.h"
#include "lora/ops/device.h"

namespace {

using namespace lora;

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct RowsOptions {
  std::string file, tokenizer, cache_dir;
  int rounds = 9, threads = 1;
  int64_t pack_to = 512;
};

/// From the file to packed tensors of every row; CPU seconds with one thread, else wall time.
double rows_per_second(const RowsOptions& options, const data::Tokenizer& tokenizer, bool cached, int64_t& tokens) {
  const Stopwatch watch;
  const double cpu_before = cpu_seconds();
  data::DatasetOptions settings{.format = "adgen", .max_source_length = 128, .max_target_length = 128};
  if (cached) settings.cache_dir = options.cache_dir;
  const auto dataset = data::load_dataset(options.file, settings, &tokenizer);
  if (cached && !dataset.cache_file) throw std::runtime_error("the cache was not used");
  data::Loader loader(dataset,
                      {.batch_size = 4, .drop_last = false, .workers = 0, .pad_to_multiple_of = 8, .pack_to = options.pack_to});
  tokens = 0;
  while (const auto step = loader.next()) {
    for (const Batch& batch : step->micro_batches) tokens += batch.num_tokens;
  }
  const double seconds = options.threads == 1 ? cpu_seconds() - cpu_before : watch.seconds();
  return static_cast<double>(dataset.size()) / seconds;
}

void measure_rows(const RowsOptions& options) {
  at::set_num_threads(options.threads);
  const auto tokenizer = data::load_sentencepiece(options.tokenizer);
  std::filesystem::remove_all(options.cache_dir);
  data::DatasetOptions fill{.format = "adgen", .max_source_length = 128, .max_target_length = 128};
  fill.cache_dir = options.cache_dir;
  const auto rows = data::load_dataset(options.file, fill, tokenizer.get()).size();
  std::vector<double> cold, cached;
  int64_t cold_tokens = 0, cached_tokens = 0;
  for (int round = 0; round < options.rounds; ++round) {
    cold.push_back(rows_per_second(options, *tokenizer, false, cold_tokens));
    cached.push_back(rows_per_second(options, *tokenizer, true, cached_tokens));
  }
  std::filesystem::remove_all(options.cache_dir);
  if (cold_tokens != cached_tokens) throw std::runtime_error("the cache holds other tokens");
  fmt::print(
      "{{\"rows\": {}, \"tokens_per_row\": {:.1f}, \"threads\": {}, \"clock\": \"{}\", "
      "\"tokenised\": {{\"rows_per_second\": [{:.0f}], \"median\": {:.0f}}}, "
      "\"cached\": {{\"rows_per_second\": [{:.0f}], \"median\": {:.0f}}}}}\n",
      rows, static_cast<double>(cold_tokens) / static_cast<double>(rows), options.threads, options.threads == 1 ? "cpu" : "wall",
      fmt::join(cold, ", "), median(cold), fmt::join(cached, ", "), median(cached));
}

struct RecordsOptions {
  std::string file, tokenizer, directory;
  int64_t rows = 1'000'000, length = 120;
};

/// Rows of made-up tokens, written as fast as they can be.
double rows_written_per_second(const RecordsOptions& options) {
  const Stopwatch watch;
  formats::RecordWriter writer(options.directory, {.set = std::string(32, '0')});
  std::vector<int32_t> tokens(static_cast<size_t>(options.length));
  for (int64_t row = 1; row <= options.rows; ++row) {
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((static_cast<size_t>(row) * 31 + i * 17) % 32000);
    writer.add(tokens, row, {});
  }
  writer.finish({.format = "tokens", .tokenizer = "", .vocab_size = 32000}, {});
  return static_cast<double>(options.rows) / watch.seconds();
}

/// Tokenising and writing on one core; writing alone; opening with every check, and the shuffled order of an epoch.
void measure_records(const RecordsOptions& options) {
  at::set_num_threads(1);
  const auto tokenizer = data::load_tokenizer(options.tokenizer);
  std::filesystem::remove_all(options.directory);
  const Stopwatch preparing;
  const auto prepared = data::write_records(options.file, options.directory,
                                            {.rows = {.max_source_length = 128, .max_target_length = 128}}, tokenizer.get());
  const double prepared_rows_per_second = static_cast<double>(prepared.header.rows) / preparing.seconds();
  std::filesystem::remove_all(options.directory);
  const double written = rows_written_per_second(options);
  const Stopwatch opening;
  const auto rows = data::open_records(options.directory, {.vocab_size = 32000}, nullptr);
  const double open_seconds = opening.seconds();
  const Stopwatch shuffling;
  const auto order = permutation(rows.size(), 1);
  const double shuffle_seconds = shuffling.seconds();
  const Stopwatch reading;
  data::Example example;
  int64_t sum = 0;
  for (const int64_t row : order) {
    rows.read(row, example);
    sum += example.input_ids[0];
  }
  fmt::print(
      "{{\"tokenised_and_written_rows_per_second\": {:.0f}, \"written_rows_per_second\": {:.0f}, \"rows\": {}, "
      "\"tokens_per_row\": {}, "
      "\"open_seconds\": {:.3f}, \"shuffle_seconds\": {:.3f}, \"opened_and_shuffled_rows_per_second\": {:.0f}, "
      "\"read_shuffled_rows_per_second\": {:.0f}, \"sum\": {}}}\n",
      prepared_rows_per_second, written, rows.size(), options.length, open_seconds, shuffle_seconds,
      static_cast<double>(rows.size()) / (open_seconds + shuffle_seconds), static_cast<double>(rows.size()) / reading.seconds(),
      sum);
  std::filesystem::remove_all(options.directory);
}

/// Rows that arrive late, as from a busy disk or over a network.
class SlowRows : public data::RowSource {
 public:
  SlowRows(int64_t rows, double seconds_per_row) : rows_(rows), seconds_per_row_(seconds_per_row) {}
  int64_t size() const override { return rows_; }
  int64_t length(int64_t) const override { return 64; }
  void read(int64_t row, data::Example& example) const override {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds_per_row_));
    example.input_ids.assign(64, 7);
    example.labels = example.input_ids;
    example.row = row + 1;
  }

 private:
  int64_t rows_;
  double seconds_per_row_;
};

struct SlowOptions {
  double batch_seconds = 0.3;
  std::vector<double> step_seconds = {0.35, 0.1};
  int64_t fixed_steps = 10, growing_steps = 48;
};

/// Seconds that each step waits.
struct Waits {
  std::vector<double> seconds;
  int64_t workers = 0;  ///< at the end

  double mean_from(size_t first) const {
    return std::accumulate(seconds.begin() + static_cast<std::ptrdiff_t>(first), seconds.end(), 0.0) /
           static_cast<double>(seconds.size() - first);
  }
  /// The last step, counted from 1, that waited 0.01 s; 0: none did.
  int64_t last_waiting_step() const {
    const auto last = std::find_if(seconds.rbegin(), seconds.rend(), [](double wait) { return wait >= 0.01; });
    return seconds.rend() - last;
  }
};

Waits waits_of(const SlowOptions& options, double step_seconds, std::optional<int64_t> workers) {
  constexpr int64_t kBatch = 8;
  const int64_t steps = workers ? options.fixed_steps : options.growing_steps;
  const SlowRows rows(kBatch * 100, options.batch_seconds / kBatch);
  data::Loader loader(rows, {.batch_size = kBatch, .workers = workers, .num_steps = steps});
  Waits waits;
  while (const auto step = loader.next()) {
    waits.seconds.push_back(step->data_seconds);
    std::this_thread::sleep_for(std::chrono::duration<double>(step_seconds));
  }
  waits.workers = loader.num_workers();
  return waits;
}

/// A line for each run, as soon as it is done.
void measure_slow_source(const SlowOptions& options) {
  for (const double step_seconds : options.step_seconds) {
    for (const std::optional<int64_t> workers : {std::optional<int64_t>(0), {1}, {}}) {
      const Waits waits = waits_of(options, step_seconds, workers);
      fmt::print(
          "{{\"batch_seconds\": {}, \"step_seconds\": {}, \"steps\": {}, \"workers\": \"{}\", "
          "\"workers_at_end\": {}, \"wait_seconds\": {:.4f}, \"wait_seconds_second_half\": {:.4f}, "
          "\"last_waiting_step\": {}}}\n",
          options.batch_seconds, step_seconds, waits.seconds.size(), workers ? fmt::format("{}", *workers) : "auto",
          waits.workers, waits.mean_from(0), waits.mean_from(waits.seconds.size() / 2), waits.last_waiting_step());
      std::fflush(stdout);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  prepare_memory();
  CLI::App program{"Measures the data path, for benchmarks/data_path.py"};
  program.require_subcommand(1);
  RowsOptions rows;
  auto* rows_command = program.add_subcommand("rows", "JSON lines to packed tensors, tokenised and from the cache");
  rows_command->add_option("--file", rows.file)->required();
  rows_command->add_option("--tokenizer", rows.tokenizer)->required();
  rows_command->add_option("--cache-dir", rows.cache_dir, "Emptied")->required();
  rows_command->add_option("--rounds", rows.rounds);
  rows_command->add_option("--threads", rows.threads);
  rows_command->add_option("--pack-to", rows.pack_to);
  RecordsOptions records;
  auto* records_command = program.add_subcommand("records", "Record files written, opened, shuffled and read on one core");
  records_command->add_option("--file", records.file, "adgen rows")->required();
  records_command->add_option("--tokenizer", records.tokenizer)->required();
  records_command->add_option("--directory", records.directory, "Emptied")->required();
  records_command->add_option("--rows", records.rows, "Of the set that is opened")->check(CLI::PositiveNumber);
  records_command->add_option("--length", records.length, "Tokens of each")->check(CLI::PositiveNumber);
  SlowOptions slow;
  auto* slow_command = program.add_subcommand("slow_source", "What steps wait for a source that takes its time");
  slow_command->add_option("--batch-seconds", slow.batch_seconds);
  slow_command->add_option("--step-seconds", slow.step_seconds);
  slow_command->add_option("--fixed-steps", slow.fixed_steps, "Steps of a run whose workers are given")
      ->check(CLI::PositiveNumber);
  slow_command->add_option("--growing-steps", slow.growing_steps, "Steps of a run that adds workers")->check(CLI::PositiveNumber);
  CLI11_PARSE(program, argc, argv);
  if (rows_command->parsed()) measure_rows(rows);
  if (records_command->parsed()) measure_records(records);
  if (slow_command->parsed()) measure_slow_source(slow);
}
