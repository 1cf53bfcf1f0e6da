#include "lora/generate/sampler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

using lora::SplitMix64;
using lora::generate::sample_token;
using lora::generate::SampledToken;
using lora::generate::SamplingOptions;

namespace {

at::Tensor tensor_of(const std::vector<float>& values) { return at::tensor(values, at::kFloat); }

/// Logits whose softmax is `probabilities`, shifted to show that only differences count.
at::Tensor logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3));
  return tensor_of(logits);
}

int64_t greedy(const at::Tensor& logits_V) {
  SplitMix64 random(1);
  return sample_token(logits_V, {}, random).id;
}

std::map<int64_t, int> draw_counts(const at::Tensor& logits_V, const SamplingOptions& options, int draws) {
  SplitMix64 random(12345);
  std::map<int64_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sample_token(logits_V, options, random).id];
  return counts;
}

/// Pearson's chi-square of counts against expected probabilities must stay under the bound that
/// chance exceeds once in 10^5 (for up to 4 degrees of freedom: 28.5); others must not occur at
/// all.
void check_distribution(const at::Tensor& logits_V, const SamplingOptions& options, const std::map<int64_t, double>& expected) {
  constexpr int kDraws = 20000;
  double chi_square = 0;
  int seen = 0;
  const auto counts = draw_counts(logits_V, options, kDraws);
  for (const auto& [id, probability] : expected) {
    const int count = counts.contains(id) ? counts.at(id) : 0;
    const double mean = probability * kDraws;
    chi_square += (count - mean) * (count - mean) / mean;
    seen += count;
  }
  CHECK(chi_square < 28.5);
  CHECK(seen == kDraws);
}

std::string error_of(const SamplingOptions& options) {
  return lora::testing::message_of<lora::ConfigError>([&] {
    SplitMix64 random(0);
    sample_token(tensor_of({1, 2}), options, random);
  });
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const std::vector<double> kProbabilities{0.1, 0.4, 0.05, 0.3, 0.15};

}  // namespace

TEST_CASE("greedy takes the likeliest token, the lowest id among equals", "[generate]") {
  CHECK(greedy(tensor_of({-1, 3, 2, 3, 3})) == 1);
  CHECK(greedy(tensor_of({0, 0, 0})) == 0);
  CHECK(greedy(tensor_of({-kInfinity, -kInfinity, -5})) == 2);
  // Differences that fp32 log-probabilities lose still decide.
  CHECK(greedy(tensor_of({-1000, -0.00000011f, -0.0000001f})) == 2);
}

TEST_CASE("greedy draws nothing from the generator", "[generate]") {
  SplitMix64 random(9), untouched(9);
  sample_token(tensor_of({1, 2}), {}, random);
  CHECK(random.next() == untouched.next());
}

TEST_CASE("the log-probability is the model's own, before temperature and cuts", "[generate]") {
  SamplingOptions options;
  options.temperature = 0.3;
  options.top_k = 2;
  options.top_p = 0.9;
  SplitMix64 random(4);
  const SampledToken token = sample_token(logits_of(kProbabilities), options, random);
  CHECK(token.logprob == Approx(std::log(kProbabilities[static_cast<size_t>(token.id)])).margin(1e-6));
}

TEST_CASE("half precision logits are read in fp32", "[generate]") {
  SplitMix64 random(4);
  const at::Tensor logits_V = tensor_of({1, 2, 4}).to(at::kBFloat16);
  const double expected = 4 - std::log(std::exp(1.) + std::exp(2.) + std::exp(4.));
  CHECK(sample_token(logits_V, {}, random).logprob == Approx(expected).epsilon(1e-6));
}

TEST_CASE("sampling follows the softmax", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  check_distribution(logits_of(kProbabilities), options, {{0, 0.1}, {1, 0.4}, {2, 0.05}, {3, 0.3}, {4, 0.15}});
}

TEST_CASE("temperature sharpens the softmax", "[generate]") {
  SamplingOptions options;
  options.temperature = 0.5;  // probabilities squared: 1, 16, 0.25, 9, 2.25 hundredths
  const double sum = 0.01 + 0.16 + 0.0025 + 0.09 + 0.0225;
  check_distribution(logits_of(kProbabilities), options,
                     {{0, 0.01 / sum}, {1, 0.16 / sum}, {2, 0.0025 / sum}, {3, 0.09 / sum}, {4, 0.0225 / sum}});
}

TEST_CASE("top_k keeps the k likeliest, lower ids first among equals", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 2;
  check_distribution(logits_of(kProbabilities), options, {{1, 4. / 7}, {3, 3. / 7}});
  check_distribution(tensor_of({2, 5, 5, 5}), options, {{1, 0.5}, {2, 0.5}});
  options.top_k = 1;
  check_distribution(tensor_of({2, 5, 5, 5}), options, {{1, 1.0}});
  options.top_k = 100;
  check_distribution(logits_of({0.25, 0.75}), options, {{0, 0.25}, {1, 0.75}});
}

TEST_CASE("top_p keeps tokens until the probability before them exceeds p", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  options.top_p = 0.65;  // before the third: 0.4 + 0.3 > 0.65
  check_distribution(logits_of(kProbabilities), options, {{1, 4. / 7}, {3, 3. / 7}});
  options.top_p = 0.75;  // the token that crosses p stays
  check_distribution(logits_of(kProbabilities), options, {{1, 0.4 / 0.85}, {3, 0.3 / 0.85}, {4, 0.15 / 0.85}});
  options.top_p = 0.93;  // only the last is beyond it
  check_distribution(logits_of(kProbabilities), options, {{0, 0.1 / 0.95}, {1, 0.4 / 0.95}, {3, 0.3 / 0.95}, {4, 0.15 / 0.95}});
  options.top_p = 1e-9;  // never fewer than one
  check_distribution(logits_of(kProbabilities), options, {{1, 1.0}});
}

TEST_CASE("top_p keeps a token whose probability before it is exactly p", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  options.top_p = 0.5;  // equal logits: weights of exactly 1
  check_distribution(tensor_of({1, 1, 1, 1}), options, {{0, 1. / 3}, {1, 1. / 3}, {2, 1. / 3}});
}

TEST_CASE("top_p works on what top_k left", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 3;     // 0.4, 0.3, 0.15 of 0.85
  options.top_p = 0.81;  // before the third: 0.82
  check_distribution(logits_of(kProbabilities), options, {{1, 4. / 7}, {3, 3. / 7}});
}

TEST_CASE("impossible tokens are never drawn", "[generate]") {
  SamplingOptions options;
  options.temperature = 5;
  check_distribution(tensor_of({-kInfinity, 1, -kInfinity, 1, -kInfinity}), options, {{1, 0.5}, {3, 0.5}});
  options.temperature = 1e-300;
  check_distribution(tensor_of({0, 1, 0.5}), options, {{1, 1.0}});
}

TEST_CASE("a seed gives the same tokens again, another seed others", "[generate]") {
  SamplingOptions options;
  options.temperature = 1;
  const auto sequence = [&](uint64_t seed) {
    SplitMix64 random(seed);
    std::vector<int64_t> ids;
    for (int i = 0; i < 50; ++i) {
      ids.push_back(sample_token(at::zeros({50}), options, random).id);
    }
    return ids;
  };
  CHECK(sequence(3) == sequence(3));
  CHECK(sequence(3) != sequence(4));
  // Uniform over 50 tokens: floor(50 u) with u the generator's own number.
  SplitMix64 random(3);
  CHECK(sequence(3).front() == static_cast<int64_t>(50 * random.uniform()));
}

TEST_CASE("a draw walks what top_k left from the likeliest on", "[generate]") {
  constexpr int64_t kKept = 60;
  at::manual_seed(3);
  const at::Tensor logits_V = at::randn({1000});
  const auto [kept, ids] = logits_V.to(at::kDouble).topk(kKept);
  const at::Tensor weights = at::exp(kept - kept[0]), cumulative = weights.cumsum(0);
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = kKept;
  SplitMix64 random(5), same(5);
  for (int draw = 0; draw < 50; ++draw) {
    const double threshold = same.uniform() * cumulative[-1].item<double>();
    const auto place = (cumulative <= threshold).sum().item<int64_t>();
    CHECK(sample_token(logits_V, options, random).id == ids[place].item<int64_t>());
  }
}

TEST_CASE("the least number that a generator gives draws no impossible token", "[generate]") {
  constexpr uint64_t kSeedOfZero = 0 - uint64_t{0x9e3779b97f4a7c15};  // the state comes to 0, which mixes to 0
  REQUIRE(SplitMix64(kSeedOfZero).uniform() == 0);
  SamplingOptions options;
  options.temperature = 1;
  SplitMix64 random(kSeedOfZero);
  CHECK(sample_token(tensor_of({-kInfinity, -kInfinity, 0, 1}), options, random).id == 2);
}

TEST_CASE("options out of range are refused", "[generate]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double temperature : {-0.1, nan, std::numeric_limits<double>::infinity()}) {
    CHECK(error_of({temperature, 0, 1}).starts_with("[temperature]"));
  }
  CHECK(error_of({1, -1, 1}).starts_with("[top_k]"));
  for (const double top_p : {0.0, -0.5, 1.5, nan}) {
    CHECK(error_of({1, 0, top_p}).starts_with("[top_p]"));
  }
}

TEST_CASE("logits without a distribution are refused", "[generate]") {
  for (const auto& logits : {tensor_of({1, NAN}), tensor_of({1, kInfinity}), tensor_of({-kInfinity, -kInfinity})}) {
    for (const double temperature : {0.0, 1.0}) {
      SplitMix64 random(0);
      SamplingOptions options;
      options.temperature = temperature;
      CHECK_THROWS_AS(sample_token(logits, options, random), lora::NonFiniteError);
    }
  }
}

TEST_CASE("logits of another rank are refused", "[generate]") {
  SplitMix64 random(0);
  CHECK_THROWS_AS(sample_token(at::zeros({1, 4}), {}, random), lora::ShapeError);
  CHECK_THROWS_AS(sample_token(at::zeros({0}), {}, random), lora::ShapeError);
}

TEST_CASE("scores choose, logits give the log-probability", "[generate]") {
  const at::Tensor logits_V = tensor_of({1, 2, 4});
  const float never = -std::numeric_limits<float>::infinity();
  SplitMix64 random(1);
  const std::vector<float> scores{5, 3, never};
  const SampledToken greedy_one = sample_token(logits_V, scores, {}, random);
  CHECK(greedy_one.id == 0);
  CHECK(greedy_one.logprob == Approx(1 - std::log(std::exp(1) + std::exp(2) + std::exp(4))).margin(1e-6));
  for (int i = 0; i < 200; ++i) CHECK(sample_token(logits_V, scores, {.temperature = 50}, random).id != 2);
  const std::vector<float> none(3, never), few{1, 2};
  CHECK_THROWS_AS(sample_token(logits_V, none, {}, random), lora::ConfigError);
  CHECK_THROWS_AS(sample_token(logits_V, few, {}, random), lora::ShapeError);
}
