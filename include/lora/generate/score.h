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
  double sum_logprob = 0;   ///< over the targets
  int64_t num_targets = 0;
  double loss = 0;          ///< mean negative over the targets; 0 without targets
};

/// Scores rows, `batch_size` at a time, dropout off; rows are independent of each other.
std::vector<RowScore> score(nn::CausalLMImpl& model, std::span<const data::Example> examples, int64_t batch_size,
                            const at::Device& device);

}  // namespace lora::generate
