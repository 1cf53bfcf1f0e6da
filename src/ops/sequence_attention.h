// Softmax attention within sequences of rows on the CPU, causal but for the rows of a context that all see, from the projections
// as a product leaves them: heads are taken apart and rotated on their way into the caches, and gradients go back the same way.
// Nothing of the size of (queries x keys) outlives a block.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

// Legend: N rows (tokens), H heads, G key/value heads, K head size, W = (H + 2 G) K, T rows of the
// rotary tables.
namespace lora::ops {

using at::Tensor;

/// Rows that see each other, each those before it and itself, and the first `context` ones besides.
struct Sequence {
  int64_t begin = 0, length = 0;
  int64_t angle = 0;    ///< the first one's row of the rotary tables
  int64_t context = 0;  ///< at most length
};

/// Queries, keys and values side by side, and how to read them.
struct JoinedHeads {
  Tensor qkv_NW;          ///< bf16, fp32 or double; contiguous
  Tensor cos_TK, sin_TK;  ///< (T, K/2) contiguous in the wide type, for queries and keys;
                          ///< undefined: not rotated
  int64_t heads = 0, groups = 0;
  std::vector<Sequence> sequences;  ///< every row in one of them

  int64_t head_size() const { return qkv_NW.size(1) / (heads + 2 * groups); }
};

/// out (N, H K) in the type of qkv; log_sum (H, N) in the wide type: what the backward pass needs
/// of the softmax.
void attend_sequences(const JoinedHeads& joined, Tensor& out_ND, Tensor& log_sum_HN);

/// dqkv (N, W) from dout (N, H K), contiguous.
void attend_sequences_backward(const JoinedHeads& joined, const Tensor& out_ND, const Tensor& dout_ND, const Tensor& log_sum_HN,
                               Tensor& dqkv_NW);

}  // namespace lora::ops
