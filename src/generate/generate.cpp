#include "lora/generate/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "core/check.h"
#include "generate/check_tokens.h"
#include "nn/eval_mode.h"

// Legend: B batch, S sequence, D model, V vocabulary.
namespace lora::generate {
namespace {

void check(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids,
           const GenerateOptions& options) {
  check_options(options.sampling);
  require<ConfigError>(options.max_new_tokens >= 0, "[max_new_tokens] must be at least 0; found {}",
                       options.max_new_tokens);
  require<DataError>(!prompt_ids.empty(),
                     "[prompt] must have at least one token; found none; without text a prompt is "
                     "the tokenizer's begin token");
  check_tokens(model, prompt_ids, "prompt");
}

/// Logits (V) of the token that follows `new_ids`, which continue what the cache holds.
at::Tensor next_logits(nn::CausalLMImpl& model, const std::vector<int64_t>& new_ids,
                       nn::KvCache& cache, const at::Device& device) {
  Batch batch;
  batch.input_ids_BS = at::tensor(new_ids, at::kLong).unsqueeze(0).to(device);
  batch.num_tokens = static_cast<int64_t>(new_ids.size());
  const at::Tensor last_D = model.hidden(batch, &cache).select(1, -1).squeeze(0);
  return model.logits_of(last_D);
}

bool is_stop(const GenerateOptions& options, int64_t id) {
  return std::ranges::find(options.stop_ids, id) != options.stop_ids.end();
}

}  // namespace

Generation complete(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids,
                    const GenerateOptions& options, const at::Device& device) {
  check(model, prompt_ids, options);
  const at::NoGradGuard no_gradients;
  const at::AutoDispatchBelowADInplaceOrView no_autograd;  // a token's many small operations need not pass through it
  const nn::EvalMode eval_mode(model);
  SplitMix64 random(options.seed);
  nn::KvCache cache(model.num_layers());
  const int64_t room = model.max_positions() - static_cast<int64_t>(prompt_ids.size());
  const int64_t limit = std::min(options.max_new_tokens, room);

  Generation result;
  result.finish_reason = "length";
  std::vector<int64_t> unseen_ids = prompt_ids;
  while (static_cast<int64_t>(result.token_ids.size()) < limit) {
    const at::Tensor logits_V = next_logits(model, unseen_ids, cache, device);
    const SampledToken token = sample_token(logits_V, options.sampling, random);
    result.token_ids.push_back(token.id);
    result.logprobs.push_back(token.logprob);
    result.score += token.logprob;
    if (is_stop(options, token.id)) {
      result.finish_reason = "stop";
      break;
    }
    unseen_ids = {token.id};
  }
  return result;
}

}  // namespace lora::generate
