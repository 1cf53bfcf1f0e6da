#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

/// Differentiable operations with hand-written backward passes. Legend: N rows (tokens), D model, V vocabulary,
/// R rank, O outputs, I inputs. Every one is tested against finite differences in double.
namespace lora::ops {

using at::Tensor;

/// scale * dropout(x) A^T B^T: the low-rank update of one linear layer, without the base product.
/// x: (..., I); A_RI and B_OR in their own (usually fp32) type; the products run in the type of x, or autocast's.
/// `mask` (undefined: no dropout) multiplies x elementwise. Result: (..., O) in the compute type.
/// Keeps x, x A^T and the factors for backward, never an fp32 copy of x. Source: Hu et al. 2021, eq. 3.
Tensor lora_delta(const Tensor& x, const Tensor& a_RI, const Tensor& b_OR, double scale, const Tensor& mask = {});

/// Root-mean-square norm over the last dimension: weight * cast(x / rms(x)), statistics in fp32 (double for double).
/// Source: transformers LlamaRMSNorm.
Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps);

/// silu(gate) * up. Keeps only its two inputs.
Tensor swiglu(const Tensor& gate, const Tensor& up);

/// Rotary embedding in the half-split layout: x (B, H, S, K) rotated by cos, sin (B or 1, 1, S, K/2), fp32 tables.
/// Source: transformers apply_rotary_pos_emb.
Tensor rotate_half(const Tensor& x_BHSK, const Tensor& cos, const Tensor& sin);

/// Sum over rows of -log softmax(hidden W^T)[label], without ever keeping the (N, V) logits: they are made chunk by
/// chunk and the gradient while they are warm. hidden: (N, D); weight: (V, D); labels: (N), all in 0..V-1.
/// Result: scalar in fp32 (double for double). Gradients reach hidden and, when it asks for one, weight.
Tensor linear_cross_entropy_sum(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& labels_N);

}  // namespace lora::ops
