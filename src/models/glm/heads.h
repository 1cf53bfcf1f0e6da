// ChatGLM's layout of heads, and the one in which this library's kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

// Legend: N rows (tokens), H heads, K head size, P positions.
namespace lora::glm {

/// Queries, keys and values out of the fused projection, whose numbers lie head by head, [q | k | v] each, side by side as
/// (..., 3 H K): all queries, all keys, all values.
///
/// Rotation in two dimensions turns each half of a head by an angle of its own, number i of a half with number i + K/4. Within
/// a query and a key the pairs' first numbers come first here, those of both halves, so that the rotation is the usual one,
/// of number i with i + K/2; the same order on both sides leaves their products as they are.
at::Tensor heads_apart(const at::Tensor& fused, int64_t num_heads);

/// Keys (H, P, K) in that order.
at::Tensor in_pairs(const at::Tensor& k_HPK);

}  // namespace lora::glm
