#pragma once

#include <vector>

#include "lora/ops/frozen_linear.h"
#include "lora/ops/quantized.h"

namespace lora::ops {

/// frozen_linear for x (..., I) of at most rows::kFewRows rows on the CPU, without gradients: plain contiguous weights of
/// x's type, which must have kernels, are read once, as they lie in memory. The updates are computed in the wide type
/// (fp32, or double for double). A row's result is the same, bit for bit, whatever rows stand beside it.
/// Where `bits` has the weights (all of them), each thread makes a few rows' numbers, multiplies them while they are in its
/// cache, and makes the next: memory is read in few bits.
Tensor few_rows_linear(const Tensor& x, const FrozenWeights& weights, const std::vector<LowRankUpdate>& updates,
                       const std::vector<std::shared_ptr<const QuantizedTensor>>& bits = {});

}  // namespace lora::ops
