#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/generate/sampler.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_new_tokens = 256;
  /// Greedy decoding guesses so many tokens from an earlier occurrence of the last ones and checks them in one pass (see
  /// complete); 0: it does not.
  int64_t prompt_lookup_num_tokens = 3;
  std::vector<int64_t> stop_ids;  ///< end tokens; the one met is kept in token_ids
  uint64_t seed = 0;
};

struct Generation {
  std::vector<int64_t> token_ids;  ///< generated ones only
  std::vector<double> logprobs;    ///< natural log, one per generated token
  double score = 0;                ///< their sum
  std::string finish_reason;       ///< stop | length
};

/// Continues a prompt with a key/value cache, dropout off, without gradients. Stops at the model's longest sequence too.
/// Throws DataError for an empty prompt, ids outside the vocabulary, or a prompt longer than the model's context, ConfigError
/// for an option out of its range.
///
/// At temperature 0, where the model computes several rows as if each stood alone (CausalLMImpl::independent_rows: a Llama on
/// the CPU with its fast paths on, plain weights and no adapters but LoRA), text that repeats itself is decoded several tokens
/// a pass: tokens, log-probabilities and errors are, bit for bit, those of one token a pass. Source: Saxena 2023, prompt
/// lookup decoding.
Generation complete(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids, const GenerateOptions& options,
                    const at::Device& device);

}  // namespace lora::generate
