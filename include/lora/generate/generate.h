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
  std::vector<int64_t> stop_ids;  ///< end tokens; the one met is kept in token_ids
  uint64_t seed = 0;
};

struct Generation {
  std::vector<int64_t> token_ids;  ///< generated ones only
  std::vector<double> logprobs;    ///< natural log, one per generated token
  double score = 0;                ///< their sum
  std::string finish_reason;       ///< stop | length
};

/// Continues a prompt, one token at a time with a key/value cache, dropout off, without gradients. Stops at the
/// model's longest sequence too. Throws DataError for an empty prompt, ids outside the vocabulary, or a prompt longer
/// than the model's context.
Generation complete(nn::CausalLMImpl& model, const std::vector<int64_t>& prompt_ids, const GenerateOptions& options,
                    const at::Device& device);

}  // namespace lora::generate
