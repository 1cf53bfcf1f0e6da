#include "lora/generate/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "core/check.h"
#include "generate/check_tokens.h"
#include "generate/next_token.h"
#include "generate/prompt_lookup.h"
#include "lora/generate/complete_all.h"
#include "nn/eval_mode.h"

// Legend: N rows, D model, V vocabulary.
namespace lora::generate {
namespace {

void check(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids, const GenerateOptions& options) {
  check_options(options);
  require<DataError>(!prompt_ids.empty(),
                     "[prompt] must have at least one token; found none; without text a prompt is "
                     "the tokenizer's begin token");
  check_tokens(model, prompt_ids, "prompt");
}

/// States (N, D) after the last `count` of the new tokens, which continue what the cache holds.
at::Tensor last_states(nn::CausalLMImpl& model, const std::vector<int64_t>& new_ids, int64_t count, nn::KvCache& cache,
                       const at::Device& device) {
  Batch batch;
  batch.input_ids_BS = at::tensor(new_ids, at::kLong).unsqueeze(0).to(device);
  batch.num_tokens = static_cast<int64_t>(new_ids.size());
  return model.hidden(batch, &cache).select(0, 0).slice(0, batch.num_tokens - count);
}

/// How many tokens may be guessed at a time without any effect on what is generated.
int64_t most_guesses(nn::CausalLMImpl& model, const GenerateOptions& options) {
  if (options.sampling.temperature != 0 || options.prompt_lookup_num_tokens == 0) return 0;
  return std::min(options.prompt_lookup_num_tokens, model.independent_rows() - 1);
}

/// Adds the tokens that logits (N, V) choose after `ids` and after each guessed one, up to the first that was not guessed, or
/// an end. Returns how many.
int64_t add_tokens(const at::Tensor& logits_NV, const std::vector<int64_t>& guess, const GenerateOptions& options,
                   SplitMix64& random, std::vector<int64_t>& ids, Generation& result) {
  for (int64_t row = 0;; ++row) {
    const auto num_new = static_cast<int64_t>(result.token_ids.size());
    const SampledToken token = next_token(logits_NV.select(0, row), ids, num_new, options, random);
    ids.push_back(token.id);
    add_token(token, options, result);
    const bool is_last = row == static_cast<int64_t>(guess.size()) || guess[row] != token.id;
    if (is_last || result.finish_reason == "stop") return row + 1;
  }
}

}  // namespace

Generation complete(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids, const GenerateOptions& options,
                    const at::Device& device) {
  check(model, prompt_ids, options);
  const at::NoGradGuard no_gradients;
  const at::AutoDispatchBelowADInplaceOrView no_autograd;  // a token's many small operations need not pass through it
  const nn::EvalMode eval_mode(model);
  SplitMix64 random(options.seed);
  nn::KvCache cache(model.num_layers());
  PromptLookup lookup;
  const int64_t guesses = most_guesses(model, options);
  const int64_t room = model.longest_row() - static_cast<int64_t>(prompt_ids.size());
  int64_t left = std::min(options.max_new_tokens, room);

  Generation result;
  result.finish_reason = "length";
  std::vector<int64_t> ids = prompt_ids, unseen_ids = prompt_ids, guess;
  if (left > 0 && options.beams.num_beams > 1) return complete_all(model, {{{.ids = prompt_ids}}}, options, {}, device).front();
  while (left > 0 && result.finish_reason != "stop") {
    const auto checked = static_cast<int64_t>(guess.size()) + 1;
    const at::Tensor states_ND = last_states(model, unseen_ids, checked, cache, device);
    const int64_t added = add_tokens(model.logits_of(states_ND), guess, options, random, ids, result);
    left -= added;
    if (!guess.empty()) {
      lookup.learn(/*right=*/added - 1);
      cache.cut_back(static_cast<int64_t>(ids.size()) - 1);  // the last token has yet to pass through
    }
    guess = lookup.guess(ids, std::min(guesses, left - 1));
    unseen_ids = guess;
    unseen_ids.insert(unseen_ids.begin(), ids.back());
  }
  return result;
}

}  // namespace lora::generate
