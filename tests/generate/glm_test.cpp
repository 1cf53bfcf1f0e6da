// ChatGLM completes its prompts as one whole pass after the other would.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora/generate/complete_all.h"
#include "lora/generate/generate.h"
#include "lora/generate/score.h"
#include "models/glm_model.h"
#include "support.h"

using namespace lora;
using namespace lora::testing;

namespace {

/// The likeliest tokens by passes without a cache, up to <eop>, or to a <sop>, which no row can hold twice.
std::vector<int64_t> greedy(GlmImpl& model, std::vector<int64_t> ids, int64_t most) {
  const torch::NoGradGuard no_grad;
  const auto begin = static_cast<std::ptrdiff_t>(ids.size());
  const auto ends = [&] { return static_cast<std::ptrdiff_t>(ids.size()) > begin && (ids.back() == kEop || ids.back() == kSop); };
  while (static_cast<int64_t>(ids.size()) - begin < most && !ends()) {
    ids.push_back(model.forward(glm_batch(ids)).select(1, -1).argmax().item<int64_t>());
  }
  return {ids.begin() + begin, ids.end()};
}

std::vector<int64_t> prompt_of(int64_t context) {
  auto ids = glm_ids(context, 1);
  ids.pop_back();
  return ids;
}

}  // namespace

TEST_CASE("glm completes as whole passes do, and stops at its end token", "[generate]") {
  const auto model = tiny_glm(31);
  bool has_stopped = false;
  for (int64_t context = 2; context < 12; ++context) {
    const auto prompt = prompt_of(context);
    const auto found = generate::complete(*model, prompt, {.max_new_tokens = 24, .stop_ids = {kEop, kSop}}, at::kCPU);
    CHECK(found.token_ids == greedy(*model, prompt, 24));
    has_stopped = has_stopped || found.finish_reason == "stop";
  }
  CHECK(has_stopped);
}

TEST_CASE("glm decodes with guesses to the last bit as without", "[generate]") {
  // Odd sizes leave rests of vectors.
  const auto model = tiny_glm(32, {{"hidden_size", "72"}, {"num_attention_heads", "6"}, {"inner_hidden_size", "100"}});
  const torch::NoGradGuard no_grad;
  REQUIRE(model->independent_rows() > 1);
  const auto prompt = prompt_of(9);
  generate::GenerateOptions options{.max_new_tokens = 120, .prompt_lookup_num_tokens = 0, .stop_ids = {}};
  const auto expected = generate::complete(*model, prompt, options, at::kCPU);
  options.prompt_lookup_num_tokens = 3;
  const auto found = generate::complete(*model, prompt, options, at::kCPU);
  CHECK(found.token_ids == expected.token_ids);
  CHECK(found.logprobs == expected.logprobs);
  model->fast_paths.fused_norm = false;
  CHECK(model->independent_rows() == 1);
}

TEST_CASE("glm: a prompt without <sop> is an error, one that fills the context generates nothing", "[generate]") {
  const auto model = tiny_glm(33, {{"max_sequence_length", "10"}});
  CHECK_THROWS_AS(generate::complete(*model, {5, 6, kGmask}, {}, at::kCPU), DataError);
  CHECK(generate::complete(*model, prompt_of(9), {}, at::kCPU).token_ids.empty());
  CHECK(generate::complete(*model, prompt_of(7), {}, at::kCPU).token_ids.size() == 2);
}

TEST_CASE("glm scores an answer's tokens by one pass", "[generate]") {
  const auto model = tiny_glm(34);
  const std::vector<data::Example> rows = {glm_example(4, 5), glm_example(7, 2)};
  const auto scores = generate::score(*model, rows, 2, at::kCPU);
  const torch::NoGradGuard no_grad;
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::vector<int64_t> ids(rows[r].input_ids.begin(), rows[r].input_ids.end());
    const at::Tensor logprobs = at::log_softmax(model->forward(glm_batch(ids))[0], 1);
    double sum = 0;
    for (size_t i = 1; i < ids.size(); ++i) {
      if (rows[r].labels[i] != kIgnoreLabel) sum += logprobs[static_cast<int64_t>(i) - 1][ids[i]].item<double>();
    }
    CHECK(scores[r].sum_logprob == Approx(sum).epsilon(1e-5));
  }
}

TEST_CASE("glm completes many prompts as each alone, whoever leaves or changes places", "[generate]") {
  const auto model = tiny_glm(33);
  std::vector<generate::PromptRow> prompts;
  for (int64_t row = 0; row < 9; ++row) prompts.push_back({.row = row + 1, .ids = prompt_of(2 + (row * 5) % 9)});
  generate::GenerateOptions greedy_options{.max_new_tokens = 12, .stop_ids = {kEop, kSop}}, beams = greedy_options,
                                                                                            sampled = greedy_options;
  beams.beams.num_beams = 3;
  sampled.sampling = {.temperature = 1.5, .top_k = 8};
  sampled.seed = 7;
  for (const auto& options : {greedy_options, beams, sampled}) {
    const auto together = generate::complete_all(*model, prompts, options, {.max_sequences = 6}, at::kCPU);
    REQUIRE(together.size() == prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      auto own = options;
      own.seed = generate::row_seed(options.seed, prompts[i].row);
      const auto alone = generate::complete(*model, prompts[i].ids, own, at::kCPU);
      CAPTURE(i, options.beams.num_beams, options.sampling.temperature);
      CHECK(together[i].token_ids == alone.token_ids);
      CHECK(together[i].score == Approx(alone.score).margin(1e-4));
    }
  }
}
