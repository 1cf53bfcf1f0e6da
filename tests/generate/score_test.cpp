#include "lora/generate/score.h"

#include <algorithm>

#include "lora/core/error.h"
#include "lora/nn/probe.h"
#include "support.h"
#include "tiny_model.h"

using lora::data::Example;
using lora::generate::RowScore;
using lora::generate::score;
using lora::testing::message_of;
using lora::testing::next_logprobs;
using lora::testing::TinyModelImpl;

namespace {

Example example_of(int64_t row, std::vector<int32_t> ids) { return {ids, ids, row}; }

std::vector<Example> some_rows() {
  std::vector<Example> rows{example_of(1, {3, 1, 4, 1, 5}), example_of(2, {9, 2}), example_of(3, {6}),
                            example_of(4, {5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4}), example_of(5, {6, 2, 6, 4})};
  rows[0].labels = {-100, -100, 4, -100, 5};
  rows[4].labels = {6, -100, -100, -100};  // a first label never counts
  return rows;
}

/// Row by row, each prefix by itself.
std::vector<double> expected_logprobs(TinyModelImpl& model, const Example& example) {
  std::vector<double> result;
  std::vector<int64_t> prefix;
  for (size_t i = 0; i + 1 < example.input_ids.size(); ++i) {
    prefix.push_back(example.input_ids[i]);
    result.push_back(next_logprobs(model, prefix)[static_cast<size_t>(example.input_ids[i + 1])]);
  }
  return result;
}

}  // namespace

TEST_CASE("scores are those of each row alone, whatever the batch size", "[generate]") {
  TinyModelImpl model;
  const auto rows = some_rows();
  for (const int64_t batch_size : {1, 2, 4, 100}) {
    const auto scores = score(model, rows, batch_size, at::kCPU);
    REQUIRE(scores.size() == rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto expected = expected_logprobs(model, rows[r]);
      REQUIRE(scores[r].logprobs.size() == expected.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        CHECK(scores[r].logprobs[i] == Approx(expected[i]).margin(1e-5));
      }
    }
  }
}

TEST_CASE("sums and losses are over the targets", "[generate]") {
  TinyModelImpl model;
  const auto rows = some_rows();
  const auto scores = score(model, rows, 3, at::kCPU);
  const auto expected = expected_logprobs(model, rows[0]);
  CHECK(scores[0].num_targets == 2);
  CHECK(scores[0].sum_logprob == Approx(expected[1] + expected[3]).margin(1e-5));
  CHECK(scores[0].loss == Approx(-(expected[1] + expected[3]) / 2).margin(1e-5));
  CHECK(scores[3].num_targets == 11);
  CHECK(scores[4].num_targets == 0);
  CHECK(scores[4].logprobs.size() == 3);
  CHECK(scores[4].loss == 0);
}

TEST_CASE("a row of one token has no log-probabilities", "[generate]") {
  TinyModelImpl model;
  const std::vector<Example> rows{example_of(1, {6})};
  const auto scores = score(model, rows, 8, at::kCPU);
  REQUIRE(scores.size() == 1);
  CHECK(scores[0].logprobs.empty());
  CHECK(scores[0].num_targets == 0);
  CHECK(scores[0].sum_logprob == 0);
  CHECK(scores[0].loss == 0);
}

TEST_CASE("no rows are no scores", "[generate]") {
  TinyModelImpl model;
  CHECK(score(model, {}, 8, at::kCPU).empty());
}

TEST_CASE("a large vocabulary is scored in slices", "[generate]") {
  // 399 predictions x 50000 tokens in fp32 would be 80 MB.
  TinyModelImpl model({50000, 4, 400});
  Example example;
  example.row = 1;
  for (int32_t i = 0; i < 400; ++i) example.input_ids.push_back((i * 7919) % 50000);
  example.labels = example.input_ids;
  int64_t largest = 0;
  std::vector<RowScore> scores;
  {
    const lora::nn::ProbeGuard probe(
        [&](const torch::nn::Module&, const at::Tensor& output) { largest = std::max(largest, output.numel() * 4); });
    scores = score(model, std::span(&example, 1), 1, at::kCPU);
  }
  CHECK(largest <= int64_t{64} << 20);
  CHECK(largest > int64_t{8} << 20);  // slices, not rows
  REQUIRE(scores[0].logprobs.size() == 399);
  for (const size_t i : {0u, 166u, 167u, 168u, 334u, 335u, 398u}) {
    const std::vector<int64_t> prefix(example.input_ids.begin(), example.input_ids.begin() + static_cast<int64_t>(i) + 1);
    const double expected = next_logprobs(model, prefix)[static_cast<size_t>(example.input_ids[i + 1])];
    CHECK(scores[0].logprobs[i] == Approx(expected).margin(1e-4));
  }
}

TEST_CASE("scoring needs no gradients or dropout and puts the mode back", "[generate]") {
  TinyModelImpl model;
  model.train();
  const auto rows = some_rows();
  score(model, rows, 2, at::kCPU);
  CHECK(model.is_training());
  CHECK_FALSE(model.trained_mode);
  CHECK_FALSE(model.with_gradients);
}

TEST_CASE("rows that the model cannot take are named", "[generate]") {
  TinyModelImpl model;
  const auto refused = [&](const Example& bad) {
    const std::vector<Example> rows{example_of(1, {1, 2}), bad};
    return message_of<lora::DataError>([&] { score(model, rows, 2, at::kCPU); });
  };
  CHECK(refused(example_of(41, std::vector<int32_t>(13, 1))).starts_with("[row 41]"));
  CHECK(refused(example_of(42, {1, 11})).starts_with("[row 42]"));
  CHECK(refused(example_of(43, {-1, 1})).starts_with("[row 43]"));
  CHECK(refused(example_of(44, {})).starts_with("[row 44]"));
  Example unlabelled = example_of(45, {1, 2, 3});
  unlabelled.labels.pop_back();
  CHECK(refused(unlabelled).starts_with("[row 45]"));
}

TEST_CASE("a batch size below one is refused", "[generate]") {
  TinyModelImpl model;
  CHECK_THROWS_AS(score(model, {}, 0, at::kCPU), lora::ConfigError);
}
