// One more token of one sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "lora/generate/generate.h"

namespace lora::generate {

/// Throws ConfigError for an option out of its range.
void check_options(const GenerateOptions& options);

/// Chooses what follows `ids`, prompt and answer so far, by the logits (V) after them; the answer has `num_new` tokens.
SampledToken next_token(const at::Tensor& logits_V, std::span<const int64_t> ids, int64_t num_new, const GenerateOptions& options,
                        SplitMix64& random);

/// Adds a token to an answer, and whether it is an end.
void add_token(const SampledToken& token, const GenerateOptions& options, Generation& result);

/// Whether an answer ends with its last token, by its own or by what it says.
bool is_end(std::span<const int64_t> new_ids, const GenerateOptions& options);

}  // namespace lora::generate
