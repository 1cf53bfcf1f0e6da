#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lora/core/random.h"

namespace lora::generate {

struct SamplingOptions {
  double temperature = 0;  ///< 0: greedy
  int64_t top_k = 0;       ///< 0: all
  double top_p = 1;        ///< tokens whose cumulative probability before them is at most this
};

struct SampledToken {
  int64_t id = 0;
  double logprob = 0;  ///< under the model's own distribution, before temperature and cuts
};

/// Chooses the next token from logits (V) of any device. Throws NonFiniteError when they hold NaN.
SampledToken sample_token(const at::Tensor& logits_V, const SamplingOptions& options, SplitMix64& random);

}  // namespace lora::generate
