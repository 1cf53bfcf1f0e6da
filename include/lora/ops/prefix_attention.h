#pragma once

#include <cstdint>
#include <vector>

#include "lora/ops/ops.h"

// Legend: B batch, H heads, S sequence, K head size, P places of the longest context.
namespace lora::ops {

/// How many first places of each row all its tokens see.
struct Contexts {
  int64_t longest = 0;  ///< P
  Tensor within_BP;     ///< bool, whether a place is in its row's context; undefined: all are, the rows' contexts are equal
};

/// Those of a batch's rows, on the device. Made once for all layers. Throws ShapeError for none and negative ones.
Contexts contexts_of(const std::vector<int64_t>& contexts, const at::Device& device);

/// Causal attention in which the tokens of a row's context see each other, too, as in a prefix language model; scaled by
/// 1/sqrt(K), result (B, S, H K). Out of LibTorch's kernels, for types and devices that joined_attention does not take: causal
/// attention of all, and mutual attention of the first P places, whose mask is a number per place. Nothing of (S, S) is made by
/// it.
Tensor prefix_attention(const Heads& heads, const Contexts& contexts);

}  // namespace lora::ops
