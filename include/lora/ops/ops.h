#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lora/ops/frozen_linear.h"

/// Differentiable operations with hand-written backward passes. Legend: N rows (tokens), D model, V vocabulary,
/// R rank, O outputs, I inputs, B batch, S sequence, H heads, G key/value heads, K head size, F feed-forward.
/// Every one is tested against finite differences in double.
namespace lora::ops {

using at::Tensor;

/// scale * dropout(x) A^T B^T: the low-rank update of one linear layer, without the base product.
/// x: (..., I); A_RI and B_OR in their own (usually fp32) type; the products run in the type of x, or autocast's.
/// `mask` (undefined: no dropout) multiplies x elementwise. Result: (..., O) in the compute type.
/// Keeps x, x A^T and the factors for backward, never an fp32 copy of x. Source: Hu et al. 2021, eq. 3.
Tensor lora_delta(const Tensor& x, const Tensor& a_RI, const Tensor& b_OR, double scale, const Tensor& mask = {});

/// y * scale + shift along the last dimension (O), in the type of y; computed in fp32 (double for double). scale and shift
/// (undefined: 0) are (O) in their own type. Keeps y and scale.
Tensor scale_columns(const Tensor& y, const Tensor& scale_O, const Tensor& shift_O = {});

/// Root-mean-square norm over the last dimension: weight * cast(x / rms(x)), statistics in fp32 (double for double).
/// Source: transformers LlamaRMSNorm.
Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps);

/// silu(gate) * up. Keeps only its two inputs.
Tensor swiglu(const Tensor& gate, const Tensor& up);

/// Rotary embedding in the half-split layout: x (B, H, S, K) rotated by cos, sin (B or 1, 1, S, K/2), fp32 tables.
/// Source: transformers apply_rotary_pos_emb.
Tensor rotate_half(const Tensor& x_BHSK, const Tensor& cos, const Tensor& sin);

/// Sum over rows of -log softmax(hidden W^T)[label], without ever keeping the (N, V) logits: they are made chunk by
/// chunk and the gradient while they are warm. hidden: (N, D); weight: (V, D); labels: (N), in 0..V-1 or negative: such
/// a row counts for nothing. Throws ShapeError for a label of V or more; on a GPU, which is not waited for, it gives NaN.
/// Result: scalar in fp32 (double for double). Gradients reach hidden and, when it asks for one, weight.
/// `packed` (may be null) stands for a frozen weight; `fused` chooses the row kernels where they exist.
Tensor linear_cross_entropy_sum(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& labels_N,
                                const std::shared_ptr<const PackedWeight>& packed = nullptr, bool fused = true);

// Fused forms: one kernel each way on the CPU for bf16, fp32 and double, on a GPU for fp16 as well; elsewhere, and with
// `fused` off, the same out of the operations above or LibTorch's.

/// The residual sum x + delta (delta undefined: x itself), and rms_norm of it in the type of delta (x without one).
std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight_D, double eps,
                                       bool fused = true);

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, statistics in fp32 (double for double).
/// weight and bias (D) in their own type. Source: torch.nn.LayerNorm.
Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps, bool fused = true);
/// The residual sum x_scale * x + delta, and layer_norm of it in the type of delta. ChatGLM-6B scales its residual by
/// sqrt(2 layers).
std::pair<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight_D,
                                         const Tensor& bias_D, double eps, bool fused = true);

/// GELU by the tanh formula: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Keeps only its input.
Tensor gelu_tanh(const Tensor& x, bool fused = true);

/// swiglu of gate and up side by side: (..., 2F) -> (..., F).
Tensor swiglu_joined(const Tensor& gate_up, bool fused = true);

/// Heads apart, queries and keys rotated: q, k and v side by side, (B, S, (H + 2G) K), to q (B, H, S, K), k and v
/// (B, G, S, K). cos, sin as in rotate_half.
struct Heads {
  Tensor q_BHSK, k_BGSK, v_BGSK;
};
Heads split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t num_heads, int64_t num_kv_heads,
                    bool fused = true);

/// Key/value heads as often as query heads need them, each serving H/G neighbours: (B, G, S, K) -> (B, H, S, K).
Tensor repeat_heads(const Tensor& x_BGSK, int64_t num_heads);

/// Softmax attention of the queries (B, H, S, K) of S new tokens over the keys and values of a cache (B, G, T, K) whose last
/// ones are their own: query i sees the first T - S + 1 + i. Scores are scaled by 1/sqrt(K). Result (B, S, H K). With a kernel
/// for a few queries where no gradient is asked for; a query's result is then the same whatever queries stand beside it.
Tensor attend_to_cache(const Heads& heads, bool fused = true);

/// Causal softmax attention in which every key/value head serves H/G query heads; scores are scaled by 1/sqrt(K).
/// Result (B, S, H K). On the CPU as joined_attention; on a GPU by LibTorch's kernels,
/// and where there are contexts as prefix_attention: nothing of (S, S) is made.
Tensor causal_attention(const Heads& heads, bool fused = true, const std::vector<int64_t>& contexts = {});

/// The same straight from q, k and v side by side, (B, S, (H + 2G) K), q and k rotated on their way as split_rotated does
/// (cos undefined: not at all). With `lengths` the batch is one packed row (B = 1) of sequences that see themselves alone,
/// whose positions begin at the tables' first row each. With `contexts` all of a sequence's tokens (a row's, without lengths)
/// see its first contexts[i] ones besides, as in a prefix language model; the tables then have a row for every token of the
/// packed row. One kernel each way, on the CPU for bf16, fp32 and double: keeps
/// qkv, the result and each query's normaliser, and nothing of (S, S) outlives a block of 64 queries by 512 keys.
/// Source: Dao 2023 (FlashAttention-2), whose blocks these are.
Tensor joined_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t num_heads, int64_t num_kv_heads,
                        const std::vector<int64_t>& lengths = {}, const std::vector<int64_t>& contexts = {});
/// Whether joined_attention takes this type on this device.
bool attends_joined(const at::Device& device, at::ScalarType dtype);

/// Causal attention of one packed row (B = 1) within its sequences alone, given where they begin and end:
/// bounds (sequences + 1) int32, 0 first and S last. Result (1, S, H K). On a GPU alone, see attends_by_bounds.
Tensor attention_by_bounds(const Heads& heads, const Tensor& bounds, int64_t longest);
/// Whether attention_by_bounds takes heads of this size and type on this device: flash attention in half precision.
bool attends_by_bounds(const at::Device& device, at::ScalarType dtype, int64_t head_size);

}  // namespace lora::ops
