#include "lora/data/sampler.h"

#include <algorithm>
#include <numeric>

#include "catch.h"
#include "lora/core/error.h"

using namespace lora;
using data::Sampler;
using data::SamplerOptions;
using Rows = std::vector<std::vector<int64_t>>;

namespace {

/// The rows of all ranks in one step, slice by slice and rank by rank.
std::vector<int64_t> rows_of_all_ranks(SamplerOptions options, int64_t step) {
  std::vector<int64_t> rows;
  std::vector<Rows> by_rank;
  for (options.rank = 0; options.rank < options.ranks; ++options.rank) {
    by_rank.push_back(Sampler(options).rows_of(step));
  }
  for (size_t slice = 0; slice < static_cast<size_t>(options.grad_accum); ++slice) {
    for (const Rows& of_rank : by_rank) {
      if (slice >= of_rank.size()) continue;
      rows.insert(rows.end(), of_rank[slice].begin(), of_rank[slice].end());
    }
  }
  return rows;
}

std::vector<int64_t> epoch_rows(const SamplerOptions& options, int64_t epoch) {
  const int64_t steps = Sampler(options).steps_per_epoch();
  std::vector<int64_t> rows;
  for (int64_t step = epoch * steps; step < (epoch + 1) * steps; ++step) {
    const auto more = rows_of_all_ranks(options, step);
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

std::vector<int64_t> counted(int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

}  // namespace

TEST_CASE("every row is used exactly once per epoch, on any number of ranks", "[data]") {
  const int64_t ranks = GENERATE(1, 2, 3, 8, 64);
  const bool shuffle = GENERATE(false, true);
  const SamplerOptions options{
      .num_rows = 1003, .micro_batch = 3, .grad_accum = 2, .ranks = ranks, .shuffle = shuffle, .drop_last = false, .seed = 5};
  for (const int64_t epoch : {0, 1, 7}) {
    std::vector<int64_t> rows = epoch_rows(options, epoch);
    if (!shuffle) CHECK(rows == counted(1003));
    if (shuffle) CHECK(rows != counted(1003));
    std::sort(rows.begin(), rows.end());
    CHECK(rows == counted(1003));
  }
}

TEST_CASE("the order depends on seed and epoch alone, not on ranks or what was asked before", "[data]") {
  SamplerOptions options{.num_rows = 96, .micro_batch = 2, .seed = 11};
  const std::vector<int64_t> first = epoch_rows(options, 0);
  CHECK(epoch_rows(options, 1) != first);
  CHECK(epoch_rows(options, 0) == first);
  options.ranks = 4;
  options.grad_accum = 3;
  CHECK(epoch_rows(options, 0) == first);
  options.seed = 12;
  CHECK(epoch_rows(options, 0) != first);

  const Sampler forwards({.num_rows = 96, .micro_batch = 8, .seed = 1});
  const Sampler backwards({.num_rows = 96, .micro_batch = 8, .seed = 1});
  std::vector<Rows> expected;
  for (int64_t step = 0; step < 36; ++step) expected.push_back(forwards.rows_of(step));
  for (int64_t step = 35; step >= 0; --step) CHECK(backwards.rows_of(step) == expected[step]);
}

TEST_CASE("without shuffling rank k takes the k-th contiguous micro-batch of each slice", "[data]") {
  SamplerOptions options{.num_rows = 24, .micro_batch = 2, .grad_accum = 2, .ranks = 3, .rank = 1, .shuffle = false};
  CHECK(Sampler(options).steps_per_epoch() == 2);
  CHECK(Sampler(options).rows_of(0) == Rows{{2, 3}, {8, 9}});
  CHECK(Sampler(options).rows_of(1) == Rows{{14, 15}, {20, 21}});
  CHECK(Sampler(options).rows_of(2) == Rows{{2, 3}, {8, 9}});
  CHECK(Sampler(options).epoch_of(1) == 0);
  CHECK(Sampler(options).epoch_of(2) == 1);
}

TEST_CASE("the last, smaller step is left out or short", "[data]") {
  SamplerOptions options{.num_rows = 11, .micro_batch = 2, .grad_accum = 2, .shuffle = false};
  CHECK(Sampler(options).steps_per_epoch() == 2);
  CHECK(Sampler(options).rows_of(2) == Rows{{0, 1}, {2, 3}});
  options.drop_last = false;
  CHECK(Sampler(options).steps_per_epoch() == 3);
  CHECK(Sampler(options).rows_of(2) == Rows{{8, 9}, {10}});
  options.ranks = 2;  // a slice is 4 rows: 8, 9 | 10
  options.rank = 1;
  CHECK(Sampler(options).rows_of(1) == Rows{{10}});
  options.num_rows = 9;
  CHECK(Sampler(options).rows_of(1).empty());
}

TEST_CASE("fewer rows than a step makes one short step, whatever drop_last says", "[data]") {
  for (const bool drop_last : {false, true}) {
    const Sampler sampler({.num_rows = 3, .micro_batch = 2, .grad_accum = 4, .shuffle = false, .drop_last = drop_last});
    CHECK(sampler.steps_per_epoch() == 1);
    CHECK(sampler.rows_of(5) == Rows{{0, 1}, {2}});
  }
}

TEST_CASE("numbers that make no sense are refused", "[data]") {
  const SamplerOptions good{.num_rows = 4};
  const auto broken = [&](auto member, int64_t value) {
    SamplerOptions options = good;
    options.*member = value;
    CHECK_THROWS_AS(Sampler(options), ConfigError);
  };
  CHECK_NOTHROW(Sampler(good));
  broken(&SamplerOptions::num_rows, 0);
  broken(&SamplerOptions::micro_batch, 0);
  broken(&SamplerOptions::grad_accum, -1);
  broken(&SamplerOptions::ranks, 0);
  broken(&SamplerOptions::rank, 1);
  broken(&SamplerOptions::rank, -1);
  SamplerOptions huge = good;
  huge.micro_batch = huge.grad_accum = int64_t{1} << 40;
  CHECK_THROWS_AS(Sampler(huge), ConfigError);
  CHECK_THROWS_AS(Sampler(good).rows_of(-1), ConfigError);
}
