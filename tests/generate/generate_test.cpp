#include "lora/generate/generate.h"

#include <algorithm>

#include "lora/core/error.h"
#include "support.h"
#include "tiny_model.h"

using lora::generate::complete;
using lora::generate::GenerateOptions;
using lora::generate::Generation;
using lora::testing::message_of;
using lora::testing::next_logprobs;
using lora::testing::TinyModelImpl;

namespace {

const std::vector<int64_t> kPrompt{3, 1, 4};

GenerateOptions options_with(int64_t max_new_tokens) {
  GenerateOptions options;
  options.max_new_tokens = max_new_tokens;
  return options;
}

/// Greedy decoding that runs the whole sequence again for every token.
Generation complete_without_cache(TinyModelImpl& model, std::vector<int64_t> ids, int64_t count) {
  Generation result;
  for (int64_t i = 0; i < count; ++i) {
    const auto logprobs = next_logprobs(model, ids);
    const auto best = std::ranges::max_element(logprobs);
    ids.push_back(best - logprobs.begin());
    result.token_ids.push_back(ids.back());
    result.logprobs.push_back(*best);
    result.score += *best;
  }
  return result;
}

}  // namespace

TEST_CASE("generation with a cache equals whole passes without one", "[generate]") {
  TinyModelImpl model;
  const Generation expected = complete_without_cache(model, kPrompt, 7);
  // The case is worth something only when the tokens differ.
  REQUIRE(std::ranges::adjacent_find(expected.token_ids, std::not_equal_to<>()) != expected.token_ids.end());
  model.forward_sizes.clear();
  const Generation result = complete(model, kPrompt, options_with(7), at::kCPU);
  CHECK(result.token_ids == expected.token_ids);
  REQUIRE(result.logprobs.size() == 7);
  for (size_t i = 0; i < 7; ++i) {
    CHECK(result.logprobs[i] == Approx(expected.logprobs[i]).margin(1e-5));
  }
  CHECK(result.score == Approx(expected.score).margin(1e-5));
  CHECK(result.finish_reason == "length");
  REQUIRE(model.forward_sizes.size() == 7);
  CHECK(model.forward_sizes[0] == std::vector<int64_t>{1, 3});
  CHECK(model.forward_sizes[1] == std::vector<int64_t>{1, 1});
}

TEST_CASE("generation ends at an end token and keeps it", "[generate]") {
  TinyModelImpl model;
  const auto free_run = complete(model, kPrompt, options_with(7), at::kCPU).token_ids;
  GenerateOptions options = options_with(7);
  options.stop_ids = {99, free_run[2]};
  const Generation result = complete(model, kPrompt, options, at::kCPU);
  const auto end = std::ranges::find(free_run, free_run[2]);
  CHECK(result.token_ids == std::vector<int64_t>(free_run.begin(), end + 1));
  CHECK(result.logprobs.size() == result.token_ids.size());
  CHECK(result.finish_reason == "stop");
}

TEST_CASE("generation ends at the model's longest sequence", "[generate]") {
  TinyModelImpl model;  // 12 positions
  const Generation result = complete(model, kPrompt, options_with(100), at::kCPU);
  CHECK(result.token_ids.size() == 9);
  CHECK(result.finish_reason == "length");
  const Generation none = complete(model, std::vector<int64_t>(12, 1), options_with(5), at::kCPU);
  CHECK(none.token_ids.empty());
  CHECK(none.finish_reason == "length");
}

TEST_CASE("zero new tokens are an empty generation", "[generate]") {
  TinyModelImpl model;
  const Generation result = complete(model, kPrompt, options_with(0), at::kCPU);
  CHECK(result.token_ids.empty());
  CHECK(result.score == 0);
  CHECK(result.finish_reason == "length");
}

TEST_CASE("sampling depends on the seed alone", "[generate]") {
  TinyModelImpl model;
  GenerateOptions options = options_with(9);
  options.sampling.temperature = 5;
  options.seed = 1;
  const auto first = complete(model, kPrompt, options, at::kCPU).token_ids;
  CHECK(complete(model, kPrompt, options, at::kCPU).token_ids == first);
  options.seed = 2;
  CHECK(complete(model, kPrompt, options, at::kCPU).token_ids != first);
}

TEST_CASE("generation needs no gradients or dropout and puts the mode back", "[generate]") {
  TinyModelImpl model;
  for (const bool training : {true, false}) {
    model.train(training);
    complete(model, kPrompt, options_with(2), at::kCPU);
    CHECK(model.is_training() == training);
    CHECK(at::GradMode::is_enabled());
  }
  CHECK_FALSE(model.trained_mode);
  CHECK_FALSE(model.with_gradients);
  model.train();
  model.head()->eval();
  complete(model, kPrompt, options_with(1), at::kCPU);
  CHECK(model.is_training());
  CHECK_FALSE(model.head()->is_training());
}

TEST_CASE("the mode is put back after an error too", "[generate]") {
  TinyModelImpl model;
  model.train();
  at::NoGradGuard no_gradients;
  model.head()->weight.fill_(NAN);
  CHECK_THROWS_AS(complete(model, kPrompt, options_with(2), at::kCPU), lora::NonFiniteError);
  CHECK(model.is_training());
}

TEST_CASE("prompts that the model cannot take are refused", "[generate]") {
  TinyModelImpl model;
  const auto refused = [&](const std::vector<int64_t>& prompt) {
    return message_of<lora::DataError>([&] { complete(model, prompt, options_with(1), at::kCPU); });
  };
  CHECK(refused({}).find("at least one token") != std::string::npos);
  CHECK(refused({1, 11}).find("found 11") != std::string::npos);
  CHECK(refused({-1}).find("found -1") != std::string::npos);
  CHECK(refused(std::vector<int64_t>(13, 1)).find("at most 12 tokens") != std::string::npos);
  CHECK(model.forward_sizes.empty());
}

TEST_CASE("options are checked before the model runs", "[generate]") {
  TinyModelImpl model;
  GenerateOptions options = options_with(-1);
  CHECK_THROWS_AS(complete(model, kPrompt, options, at::kCPU), lora::ConfigError);
  options = options_with(0);
  options.sampling.top_p = 2;
  CHECK_THROWS_AS(complete(model, kPrompt, options, at::kCPU), lora::ConfigError);
  CHECK(model.forward_sizes.empty());
}
