#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "lora/core/random.h"

namespace lora::generate {

/// How a token is drawn from its distribution.
struct SamplingOptions {
  double temperature = 0;  ///< 0: greedy
  int64_t top_k = 0;       ///< 0: all
  double top_p = 1;        ///< tokens whose cumulative probability before them is at most this
};

/// A drawn token and its natural log-probability under the model's own distribution.
struct SampledToken {
  int64_t id = 0;
  double logprob = 0;  ///< under the model's own distribution, before temperature and cuts
};

/// Throws ConfigError unless temperature is finite and >= 0, top_k >= 0 and 0 < top_p <= 1.
void check_options(const SamplingOptions& options);

/// Chooses the next token from logits (V) of any device: the likeliest (the lowest id among equals) at temperature 0,
/// else one drawn after temperature, then top_k, then top_p over what top_k left. Equal logits and generator states
/// give equal tokens on every platform. Throws NonFiniteError when the logits have no distribution (NaN, +infinity,
/// all -infinity), ConfigError as check_options. Source of the cuts: Meta's Llama 2 sample_top_p.
SampledToken sample_token(const at::Tensor& logits_V, const SamplingOptions& options, SplitMix64& random);

/// The same by scores (V) that rules made of the logits, whose log-probability is returned; empty: the logits themselves.
/// -infinity is never chosen; ConfigError when nothing else is there.
SampledToken sample_token(const at::Tensor& logits_V, std::span<const float> scores, const SamplingOptions& options,
                          SplitMix64& random);

}  // namespace lora::generate
