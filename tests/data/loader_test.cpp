#include "lora/data/loader.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "catch.h"
#include "data/listed_rows.h"
#include "lora/core/error.h"
#include "lora/core/random.h"
#include "lora/core/stopwatch.h"

using namespace lora;
using data::Loader;
using data::LoaderOptions;
using testing::ListedRows;

namespace {

/// Row i holds the token i, i % 5 + 1 times.
ListedRows counting_dataset(int64_t num_rows) {
  ListedRows dataset;
  for (int64_t i = 0; i < num_rows; ++i) {
    const std::vector<int32_t> ids(static_cast<size_t>(i % 5 + 1), static_cast<int32_t>(i));
    dataset.examples.push_back({.input_ids = ids, .labels = ids, .row = i + 1});
  }
  return dataset;
}

/// Rows of every step, in order; checks step numbers and epochs.
std::vector<std::vector<int64_t>> drain(Loader& loader, int64_t first_step = 0) {
  std::vector<std::vector<int64_t>> steps;
  while (const auto data = loader.next()) {
    CHECK(data->step == ++first_step);
    CHECK(data->epoch == (data->step - 1) / loader.steps_per_epoch());
    CHECK(data->data_seconds >= 0);
    std::vector<int64_t> rows;
    for (const Batch& batch : data->micro_batches) {
      CHECK(batch.input_ids_BS.size(0) == static_cast<int64_t>(batch.rows.size()));
      CHECK(batch.input_ids_BS[0][0].item<int64_t>() + 1 == batch.rows[0]);
      CHECK(data->read_seconds > 0);
      CHECK(data->transform_seconds > 0);
      rows.insert(rows.end(), batch.rows.begin(), batch.rows.end());
    }
    steps.push_back(rows);
  }
  return steps;
}

double resident_megabytes() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1e6;
}

}  // namespace

TEST_CASE("any number of workers gives the same steps in the same order", "[data]") {
  const ListedRows dataset = counting_dataset(53);
  LoaderOptions options{.batch_size = 3, .grad_accum = 2, .seed = 4, .workers = 0, .num_steps = 30};
  Loader plain(dataset, options);
  CHECK(plain.steps_per_epoch() == 8);
  CHECK(plain.num_steps() == 30);
  const auto expected = drain(plain);
  CHECK(expected.size() == 30);
  for (const std::optional<int64_t> workers : {std::optional<int64_t>(), {1}, {2}, {5}}) {
    for (const int64_t prefetch : {1, 2, 7}) {
      options.workers = workers;
      options.prefetch = prefetch;
      Loader loader(dataset, options);
      CHECK(drain(loader) == expected);
      CHECK_FALSE(loader.next().has_value());
    }
  }
}

TEST_CASE("a loader continues after the steps already done", "[data]") {
  const ListedRows dataset = counting_dataset(40);
  LoaderOptions options{.batch_size = 4, .seed = 9, .num_steps = 25};
  Loader whole(dataset, options);
  const auto expected = drain(whole);
  options.first_step = 13;
  Loader rest(dataset, options);
  CHECK(drain(rest, 13) == std::vector<std::vector<int64_t>>(expected.begin() + 13, expected.end()));
  options.first_step = 25;
  Loader done(dataset, options);
  CHECK_FALSE(done.next().has_value());
  options.first_step = 30;
  Loader beyond(dataset, options);
  CHECK_FALSE(beyond.next().has_value());
}

TEST_CASE("one epoch is the default", "[data]") {
  const ListedRows dataset = counting_dataset(10);
  Loader loader(dataset, {.batch_size = 4, .shuffle = false, .drop_last = false});
  CHECK(drain(loader) == std::vector<std::vector<int64_t>>{{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10}});
}

TEST_CASE("a worker's exception reaches next() in its step's turn, and stays", "[data]") {
  ListedRows dataset = counting_dataset(12);
  dataset.examples[7].labels.clear();
  for (const std::optional<int64_t> workers : {std::optional<int64_t>(), {0}, {1}, {3}}) {
    Loader loader(dataset, {.batch_size = 2, .shuffle = false, .workers = workers});
    for (int step = 1; step <= 3; ++step) CHECK(loader.next().value().step == step);
    for (int again = 0; again < 3; ++again) CHECK_THROWS_AS(loader.next(), DataError);
  }
}

TEST_CASE("a loader can be moved and dropped at any time", "[data]") {
  const ListedRows dataset = counting_dataset(64);
  ListedRows broken = counting_dataset(64);
  broken.examples[20].input_ids.clear();
  SplitMix64 random(1);
  for (int round = 0; round < 1000; ++round) {
    Loader loader(round % 4 == 3 ? broken : dataset, {.batch_size = 2,
                                                      .seed = random.next(),
                                                      .workers = static_cast<int64_t>(random.below(5)),
                                                      .prefetch = static_cast<int64_t>(1 + random.below(4)),
                                                      .num_steps = static_cast<int64_t>(random.below(40))});
    Loader moved = std::move(loader);
    try {
      for (uint64_t calls = random.below(45); calls > 0; --calls) moved.next();
    } catch (const DataError&) {
    }
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST_CASE("waiting is measured", "[data]") {
  const ListedRows dataset = counting_dataset(64);
  for (const int64_t workers : {0, 2}) {
    Loader loader(dataset, {.batch_size = 32, .workers = workers});
    const Stopwatch watch;
    const double waited = loader.next().value().data_seconds;
    CHECK(waited > 0);
    CHECK(waited <= watch.seconds());
  }
}

TEST_CASE("only prefetch steps are made ahead", "[data]") {
  constexpr int64_t kTokens = 1'000'000;  // 16 MB a step
  ListedRows dataset;
  const std::vector<int32_t> ids(kTokens, 1);
  dataset.examples = {{.input_ids = ids, .labels = ids}};
  const double before = resident_megabytes();
  Loader loader(dataset, {.batch_size = 1, .workers = 2, .prefetch = 3, .num_steps = 1000});
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(resident_megabytes() - before < 100);
  CHECK(loader.next().has_value());
}

TEST_CASE("options out of range are refused", "[data]") {
  const ListedRows dataset = counting_dataset(4);
  CHECK_THROWS_AS(Loader(ListedRows(), LoaderOptions{}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.workers = -1}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.workers = 1'000'000}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.prefetch = 0}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.first_step = -1}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.num_steps = -2}), ConfigError);
  CHECK_THROWS_AS(Loader(dataset, LoaderOptions{.batch_size = 0}), ConfigError);
}

TEST_CASE("a loader says how many workers it has", "[data]") {
  const ListedRows dataset = counting_dataset(64);
  Loader chosen(dataset, {.batch_size = 2, .workers = std::nullopt});
  CHECK(chosen.num_workers() == 1);
  CHECK(chosen.chooses_workers());
  Loader given(dataset, {.batch_size = 2, .workers = 3});
  CHECK(given.num_workers() == 3);
  CHECK_FALSE(given.chooses_workers());
  Loader none(dataset, {.batch_size = 2, .workers = 0});
  CHECK(none.num_workers() == 0);
  Loader done(dataset, {.batch_size = 2, .first_step = 9, .num_steps = 9});
  CHECK(done.num_workers() == 0);
}

namespace {

/// A source that keeps every reader waiting for a while.
struct SlowRows : ListedRows {
  void read(int64_t row, data::Example& example) const override {
    std::this_thread::sleep_for(std::chrono::milliseconds(8));
    ListedRows::read(row, example);
  }
};

}  // namespace

TEST_CASE("workers are added while steps wait, and the steps stay the same", "[data]") {
  SlowRows slow;
  slow.examples = counting_dataset(60).examples;
  LoaderOptions options{.batch_size = 1, .seed = 3, .workers = std::nullopt, .num_steps = 60};
  Loader loader(slow, options);
  const auto steps = drain(loader);
  CHECK(loader.num_workers() > 1);
  options.workers = 0;
  Loader plain(slow, options);
  CHECK(steps == drain(plain));
}
