#pragma once

#include <span>
#include <string>

#include "lora/nn/causal_lm.h"
#include "lora/ops/batch.h"

namespace lora::train {

/// Finds where values stop being finite: a parameter, the first layer's output in a repeated
/// forward pass without dropout (with the rows it happens in), or the first parameter's gradient. A
/// clause for a person; empty when all is finite.
std::string locate_nonfinite(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, at::ScalarType amp_dtype);

}  // namespace lora::train
