// Rules that change logits before a token is chosen. Source: transformers' logits processors, in their order.
#pragma once

#include <cstdint>
#include <span>

#include "lora/generate/generate.h"

namespace lora::generate {

bool has_rules(const GenerateOptions& options);

/// Applies the options' rules to the scores (V) of what may follow `ids`, prompt and answer so far; the answer has `num_new`
/// tokens.
void apply_rules(const GenerateOptions& options, std::span<const int64_t> ids, int64_t num_new, std::span<float> scores);

}  // namespace lora::generate
