// The way of the data: how fast rows become tensors, and how long steps wait for a slow source. See README.md.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <thread>
#include <vector>

#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
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
  data::Loader loader(dataset, {.batch_size = 4,
                                .drop_last = false,
                                .workers = 0,
                                .pad_to_multiple_of = 8,
                                .pack_to = options.pack_to});
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
  fmt::print("{{\"rows\": {}, \"tokens_per_row\": {:.1f}, \"threads\": {}, \"clock\": \"{}\", "
             "\"tokenised\": {{\"rows_per_second\": [{:.0f}], \"median\": {:.0f}}}, "
             "\"cached\": {{\"rows_per_second\": [{:.0f}], \"median\": {:.0f}}}}}\n",
             rows, static_cast<double>(cold_tokens) / static_cast<double>(rows), options.threads,
             options.threads == 1 ? "cpu" : "wall", fmt::join(cold, ", "), median(cold), fmt::join(cached, ", "),
             median(cached));
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
  int64_t steps = 60;
};

struct Waits {
  double all, later;  ///< seconds per step: over every step, over the second half
  int64_t workers;
};

Waits waits_of(const SlowOptions& options, double step_seconds, std::optional<int64_t> workers) {
  constexpr int64_t kBatch = 8;
  const SlowRows rows(kBatch * 100, options.batch_seconds / kBatch);
  data::Loader loader(rows, {.batch_size = kBatch, .workers = workers, .num_steps = options.steps});
  std::vector<double> waited;
  while (const auto step = loader.next()) {
    waited.push_back(step->data_seconds);
    std::this_thread::sleep_for(std::chrono::duration<double>(step_seconds));
  }
  const auto mean_from = [&](size_t first) {
    double sum = 0;
    for (size_t i = first; i < waited.size(); ++i) sum += waited[i];
    return sum / static_cast<double>(waited.size() - first);
  };
  return {mean_from(0), mean_from(waited.size() / 2), loader.num_workers()};
}

void measure_slow_source(const SlowOptions& options) {
  std::vector<std::string> results;
  for (const double step_seconds : options.step_seconds) {
    for (const std::optional<int64_t> workers : {std::optional<int64_t>(0), {1}, {}}) {
      const auto waits = waits_of(options, step_seconds, workers);
      results.push_back(fmt::format("{{\"step_seconds\": {}, \"workers\": \"{}\", \"workers_at_end\": {}, "
                                    "\"wait_seconds\": {:.4f}, \"wait_seconds_second_half\": {:.4f}}}",
                                    step_seconds, workers ? fmt::format("{}", *workers) : "auto", waits.workers,
                                    waits.all, waits.later));
    }
  }
  fmt::print("{{\"batch_seconds\": {}, \"steps\": {}, \"runs\": [{}]}}\n", options.batch_seconds, options.steps,
             fmt::join(results, ", "));
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
  SlowOptions slow;
  auto* slow_command = program.add_subcommand("slow_source", "What steps wait for a source that takes its time");
  slow_command->add_option("--batch-seconds", slow.batch_seconds);
  slow_command->add_option("--step-seconds", slow.step_seconds);
  slow_command->add_option("--steps", slow.steps);
  CLI11_PARSE(program, argc, argv);
  if (rows_command->parsed()) measure_rows(rows);
  if (slow_command->parsed()) measure_slow_source(slow);
}
