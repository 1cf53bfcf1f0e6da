#include "lora/core/random.h"

#include <algorithm>
#include <array>
#include <set>

#include "catch.h"

TEST_CASE("splitmix64 gives the published sequence for seed 1234567", "[core]") {
  // The sequence printed by the reference C program of the algorithm's authors.
  lora::SplitMix64 generator(1234567);
  CHECK(generator.next() == 6457827717110365317u);
  CHECK(generator.next() == 3203168211198807973u);
  CHECK(generator.next() == 9817491932198370423u);
  CHECK(generator.next() == 4593380528125082431u);
  CHECK(generator.next() == 16408922859458223821u);
}

TEST_CASE("mixed seeds depend on every part, their order and their number", "[core]") {
  std::set<uint64_t> seen;
  seen.insert(lora::mix_seed({}));
  for (uint64_t a = 0; a < 30; ++a) {
    seen.insert(lora::mix_seed({a}));
    for (uint64_t b = 0; b < 30; ++b) seen.insert(lora::mix_seed({a, b}));
  }
  CHECK(seen.size() == 1 + 30 + 900);
  CHECK(lora::mix_seed({1, 2, 3}) == lora::mix_seed({1, 2, 3}));
}

TEST_CASE("numbers below a bound are uniform", "[core]") {
  lora::SplitMix64 generator(5);
  std::array<int, 6> counts = {};
  for (int i = 0; i < 60'000; ++i) ++counts[generator.below(6)];
  // 5 standard deviations of a binomial(60000, 1/6).
  for (const int count : counts) CHECK(std::abs(count - 10'000) < 460);
  CHECK(generator.below(1) == 0);

  // Without rejection, 3 * 2^62 would make the lower third twice as likely: 1/2 instead of 1/3.
  int low = 0;
  for (int i = 0; i < 30'000; ++i) low += generator.below(3ull << 62) < (1ull << 62);
  CHECK(std::abs(low - 10'000) < 410);
}

TEST_CASE("uniform numbers lie in [0, 1)", "[core]") {
  lora::SplitMix64 generator(9);
  double sum = 0;
  for (int i = 0; i < 10'000; ++i) {
    const double value = generator.uniform();
    REQUIRE(value >= 0);
    REQUIRE(value < 1);
    sum += value;
  }
  CHECK(sum / 10'000 == Approx(0.5).margin(0.015));
}

TEST_CASE("a permutation holds every number once and depends on its seed", "[core]") {
  const auto order = lora::permutation(1000, 3);
  auto sorted = order;
  std::ranges::sort(sorted);
  for (int64_t i = 0; i < 1000; ++i) REQUIRE(sorted[static_cast<size_t>(i)] == i);
  CHECK(order != sorted);
  CHECK(order == lora::permutation(1000, 3));
  CHECK(order != lora::permutation(1000, 4));
  CHECK(lora::permutation(0, 1).empty());

  // All 6 orders of 3 things are equally likely: 5 standard deviations.
  std::array<int, 27> counts = {};
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    const auto p = lora::permutation(3, seed);
    ++counts[static_cast<size_t>(p[0] * 9 + p[1] * 3 + p[2])];
  }
  CHECK(std::ranges::count_if(counts, [](int c) { return std::abs(c - 1000) < 145; }) == 6);
}
