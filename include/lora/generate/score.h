#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lora/data/example.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

/// Log-probabilities of one row, in fp32: logprobs[i] is log p(token i+1 | tokens 0..i), natural log.
struct RowScore {
  std::vector<float> logprobs;
  double sum_logprob = 0;  ///< over the targets
  int64_t num_targets = 0;
  double loss = 0;  ///< mean negative over the targets; 0 without targets
};

/// Scores rows, `batch_size` at a time in their order, dropout off; rows are independent of each other. A row of one
/// token has no log-probabilities. Never holds the logits of all positions of a batch. Throws DataError, naming the
/// row, for one that is empty, longer than the model's context or has ids outside the vocabulary; ConfigError for a
/// batch size below 1.
std::vector<RowScore> score(nn::CausalLMImpl& model, std::span<const data::Example> examples, int64_t batch_size,
                            const at::Device& device);

}  // namespace lora::generate
