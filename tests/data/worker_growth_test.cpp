#include "data/worker_growth.h"

#include "catch.h"

using lora::data::WorkerGrowth;

namespace {

/// Steps of `compute` seconds whose batches take `batch` seconds of one worker each; returns the workers at the end.
int64_t workers_after(int steps, double compute, double batch, WorkerGrowth& growth, int64_t workers = 1) {
  for (int step = 0; step < steps; ++step) {
    // k workers deliver k batches together, then nothing for a while.
    const bool is_first_of_round = step % workers == 0;
    const double round = batch - compute * static_cast<double>(workers);
    const double waited = is_first_of_round && round > 0 ? round : 0;
    workers += growth.is_due(waited, compute + waited, workers);
  }
  return workers;
}

}  // namespace

TEST_CASE("workers are added until steps no longer wait", "[data]") {
  WorkerGrowth growth;
  CHECK(workers_after(200, 0.1, 0.35, growth) == 4);
  WorkerGrowth hidden;
  CHECK(workers_after(200, 0.35, 0.3, hidden) == 1);
  WorkerGrowth none;
  for (int step = 0; step < 100; ++step) CHECK_FALSE(none.is_due(10, 10, 0));
}

TEST_CASE("short waits, and the first one, are no reason for more workers", "[data]") {
  WorkerGrowth growth;
  CHECK_FALSE(growth.is_due(30, 30, 1));
  for (int step = 0; step < 100; ++step) CHECK_FALSE(growth.is_due(0.0009, 0.001, 1));  // under a millisecond
  for (int step = 0; step < 100; ++step) CHECK_FALSE(growth.is_due(0.0019, 0.1, 1));    // under 2 %
  CHECK(growth.is_due(0.1, 0.2, 1) + growth.is_due(0.1, 0.2, 1) + growth.is_due(0.1, 0.2, 1) + growth.is_due(0.1, 0.2, 1) == 1);
}

TEST_CASE("a worker that helped nobody is the last for a while", "[data]") {
  WorkerGrowth growth;
  int64_t workers = 1;
  for (int step = 0; step < 60; ++step) workers += growth.is_due(0.1, 0.2, workers);
  CHECK(workers == 2);
  for (int step = 0; step < 140; ++step) workers += growth.is_due(0.1, 0.2, workers);
  CHECK(workers == 3);
}

TEST_CASE("the number of workers is bounded", "[data]") {
  WorkerGrowth growth;
  double waited = 1e6;
  int64_t workers = 1;
  for (int step = 0; step < 100'000; ++step) {
    const bool is_due = growth.is_due(waited, waited + 1e-3, workers);
    workers += is_due;
    if (is_due) waited *= 0.5;  // every worker helps, and never enough
  }
  CHECK(workers == WorkerGrowth::most_workers());
}
