#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lora/generate/beams.h"
#include "lora/generate/sampler.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

/// Tokens are chosen by the model's logits after transformers' rules for them (repetition penalty, n-grams, least number of
/// tokens) in its order, then by temperature, top_k and top_p, or by beams, whose log-probabilities the rules change.
struct GenerateOptions {
  SamplingOptions sampling;
  BeamOptions beams;  ///< more than one: beam search, at temperature 0
  int64_t max_new_tokens = 256;
  int64_t min_new_tokens = 0;  ///< before so many are there, no end token is chosen
  /// What positive scores of tokens that were in prompt or answer are divided by, and others multiplied: above 1 repetition
  /// becomes rarer. Source: Keskar et al. 2019, CTRL.
  double repetition_penalty = 1;
  int64_t no_repeat_ngram_size = 0;  ///< no sequence of so many tokens comes twice, the prompt included; 0: all may
  /// Greedy decoding guesses so many tokens from an earlier occurrence of the last ones and checks them in one pass (see
  /// complete); 0: it does not.
  int64_t prompt_lookup_num_tokens = 3;
  std::vector<int64_t> stop_ids;  ///< end tokens; the one met is kept in token_ids
  /// Asked with the tokens generated so far whether they are an end too (see stop_at_strings), on several threads at a time;
  /// null: no.
  std::function<bool(std::span<const int64_t>)> stop_when;
  uint64_t seed = 0;
};

/// What was generated for one prompt.
struct Generation {
  std::vector<int64_t> token_ids;  ///< generated ones only
  std::vector<double> logprobs;    ///< natural log, one per generated token, of the model's own distribution
  double score = 0;                ///< their sum
  std::string finish_reason;       ///< stop | length
  double beam_score = 0;           ///< what beam search ranks by: the rules' log-probabilities / length^length_penalty
  std::vector<Generation> others;  ///< of a beam search: the next best, the best first
};

/// Continues a prompt with a key/value cache, dropout off, without gradients. Stops at the model's longest sequence too.
/// Throws DataError for an empty prompt, ids outside the vocabulary, or a prompt longer than the model's context, ConfigError
/// for an option out of its range; NonFiniteError as sample_token.
///
/// At temperature 0, where the model computes several rows as if each stood alone (CausalLMImpl::independent_rows: a Llama on
/// the CPU with its fast paths on, plain weights and no adapters but LoRA), text that repeats itself is decoded several tokens
/// a pass: tokens, log-probabilities and errors are, bit for bit, those of one token a pass. Source: Saxena 2023, prompt
/// lookup decoding.
Generation complete(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids, const GenerateOptions& options,
                    const at::Device& device);

}  // namespace lora::generate
