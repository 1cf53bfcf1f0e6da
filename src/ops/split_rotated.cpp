#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/apply.h"
#include "ops/rows.h"

// Legend: B batch, S sequence, H heads, G key/value heads, K head size.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// (B, S, heads * K) -> (B, heads, S, K)
Tensor split_heads(const Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads}).transpose(1, 2);
}

struct SplitRotated : torch::autograd::Function<SplitRotated> {
  static variable_list forward(AutogradContext* context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
                               int64_t num_heads, int64_t num_kv_heads) {
    const int64_t batch = qkv.size(0), length = qkv.size(1), size = qkv.size(2) / (num_heads + 2 * num_kv_heads);
    const auto wide = rows::wide_type(qkv.scalar_type());
    const Tensor cosine = cos.to(wide).contiguous(), sine = sin.to(wide).contiguous();
    Tensor q_BHSK = at::empty({batch, num_heads, length, size}, qkv.options());
    Tensor k_BGSK = at::empty({batch, num_kv_heads, length, size}, qkv.options());
    Tensor v_BGSK = at::empty_like(k_BGSK);
    rows::split_rotated(qkv.contiguous(), cosine, sine, q_BHSK, k_BGSK, v_BGSK);
    context->save_for_backward({cosine, sine});
    return {q_BHSK, k_BGSK, v_BGSK};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor dq = gradients[0].contiguous(), dk = gradients[1].contiguous(), dv = gradients[2].contiguous();
    const int64_t width = (dq.size(1) + 2 * dk.size(1)) * dq.size(3);
    Tensor dqkv = at::empty({dq.size(0), dq.size(2), width}, dq.options());
    rows::join_rotated(dq, dk, dv, saved[0], saved[1], dqkv);
    return {dqkv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Heads split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t num_heads, int64_t num_kv_heads,
                    bool fused) {
  if (rows::applies(fused, qkv, "fused_rotary")) {
    const auto heads = applied<SplitRotated>(qkv, cos, sin, num_heads, num_kv_heads);
    return {heads[0], heads[1], heads[2]};
  }
  const int64_t size = qkv.size(2) / (num_heads + 2 * num_kv_heads);
  const auto parts = qkv.split_with_sizes({num_heads * size, num_kv_heads * size, num_kv_heads * size}, -1);
  return {rotate_half(split_heads(parts[0], num_heads), cos, sin), rotate_half(split_heads(parts[1], num_kv_heads), cos, sin),
          split_heads(parts[2], num_kv_heads)};
}

}  // namespace lora::ops
